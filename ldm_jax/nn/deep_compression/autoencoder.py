"""The deep compression autoencoder: 32 pixels per latent and more."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count
from ldm_jax.nn.deep_compression.blocks import (
  Activation,
  ChannelNorm,
  activate,
  average_channels,
  channel_to_space,
  double,
  halve,
  repeat_channels,
  space_to_channel,
)
from ldm_jax.nn.deep_compression.levels import DCLevel, DCStack
from ldm_jax.nn.first_stage import DeterministicAutoencoder
from ldm_jax.nn.layers import Remat, conv


class DCEncoder(nn.Module):
  """Images to `features` channels; layers are numbered within their level."""

  stack: DCStack
  features: int
  remat: Remat
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W 3"]
  ) -> Float[Array, "b h w c"]:
    stack, dtype = self.stack, self.dtype
    # Foreign names depend on the resampling, and are found by the names here.
    kind = "unshuffle" if stack.resampling == "pixels" else "downsample"
    h, first = images, stack.used[0].channels
    if stack.levels[0].blocks:
      h = conv(h, first, name="conv_in", dtype=dtype)
    else:
      h = halve(h, first, stack.resampling, name=f"{kind}_in", dtype=dtype)
    for index, level in enumerate(stack.levels):
      for i in range(level.blocks):
        name = f"down_{index}_block_{i}"
        h = stack.block(h, index, name, self.remat, dtype)
      if level.blocks and index < len(stack.levels) - 1:
        width = stack.levels[index + 1].channels
        shortcut = average_channels(space_to_channel(h), width)
        name = f"down_{index}_{kind}_{level.blocks}"
        h = shortcut + halve(h, width, stack.resampling, name=name, dtype=dtype)
    latents = conv(h, self.features, name="conv_out", dtype=dtype)
    if stack.has_shortcut:
      latents = latents + average_channels(h, self.features)
    return latents.astype(jnp.float32)


class DCDecoder(nn.Module):
  """Latents to images; level 0 is the finest, as in the encoder."""

  stack: DCStack
  last_activation: Activation
  remat: Remat
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b H W 3"]:
    stack, dtype = self.stack, self.dtype
    width = stack.levels[-1].channels
    h = conv(latents, width, name="conv_in", dtype=dtype)
    if stack.has_shortcut:
      h = h + repeat_channels(latents.astype(dtype), width)
    for index in reversed(range(len(stack.levels))):
      level, is_last = stack.levels[index], index == len(stack.levels) - 1
      if level.blocks and not is_last:
        shortcut = repeat_channels(h, 4 * level.channels)
        name = f"up_{index}_upsample_0"
        h = channel_to_space(shortcut) + double(
          h, level.channels, stack.resampling, name=name, dtype=dtype
        )
      for i in range(level.blocks):
        name = f"up_{index}_block_{i if is_last else i + 1}"
        h = stack.block(h, index, name, self.remat, dtype)
    h = ChannelNorm("rms", dtype, name="norm_out")(h)
    h = activate(h, self.last_activation)
    if stack.levels[0].blocks:
      h = conv(h, 3, name="conv_out", dtype=dtype)
    else:
      h = double(h, 3, stack.resampling, name="conv_out", dtype=dtype)
    return h.astype(jnp.float32)


def _levels(blocks: tuple[int, ...], scales: tuple[int, ...]) -> DCStack:
  """Levels of f32c32; the three coarsest attend."""
  widths = (128, 256, 512, 512, 1024, 1024)
  return DCStack(
    tuple(
      DCLevel(width, count, level > 2, scales if level > 2 else ())
      for level, (width, count) in enumerate(zip(widths, blocks, strict=True))
    )
  )


class DCAutoencoder(DeterministicAutoencoder):
  """DC-AE, diffusers' AutoencoderDC: a `FirstStage` without randomness.

  Chen et al. 2024 (arXiv 2410.10733); the default has the blocks of SANA's
  f32c32. In the published f32c32, f64c128 and f128c512 the finest level has no
  blocks, attention has no scales, and the residual blocks of the decoder have
  norm "batch" and activation "relu".

  Attributes:
    encoder_stack, decoder_stack: of as many levels.
    last_activation: before the decoder's last convolution.
    remat: rematerialisation of blocks; see `remat_policy`.
    dtype: of computation; norms, sums of attention and results stay float32.
  """

  encoder_stack: DCStack = _levels((2, 2, 2, 3, 3, 3), (5,))
  decoder_stack: DCStack = _levels((3, 3, 3, 3, 3, 3), (5,))
  latent_channels: Count = 32
  last_activation: Activation = "relu"
  remat: Remat = "off"
  dtype: DTypeLike = "float32"

  @property
  def halvings(self) -> int:
    """How many times h and w are halved."""
    return len(self.encoder_stack.levels) - 1

  def check(self) -> None:
    """Raises ValueError if the stacks and the latents do not fit together."""
    encoder, decoder = self.encoder_stack, self.decoder_stack
    if len(encoder.levels) != len(decoder.levels):
      raise ValueError(
        f"encoder_stack and decoder_stack have {len(encoder.levels)} and "
        f"{len(decoder.levels)} levels; they need as many"
      )
    for stack in (encoder, decoder):
      width = stack.levels[-1].channels
      if stack.has_shortcut and width % self.latent_channels:
        raise ValueError(
          f"latent_channels={self.latent_channels} must divide the coarsest "
          f"level's channels={width} (has_shortcut=True)"
        )
    made = [level.channels for level in encoder.used]
    made = made[1:] if encoder.levels[0].blocks else made
    if encoder.resampling == "pixels" and any(width % 4 for width in made):
      raise ValueError(
        f"channels={made} of the encoder must be multiples of 4 with "
        "resampling='pixels'"
      )

  def setup(self):
    self.check()
    self.encoder = DCEncoder(
      self.encoder_stack, self.latent_channels, self.remat, self.dtype
    )
    self.decoder = DCDecoder(
      self.decoder_stack, self.last_activation, self.remat, self.dtype
    )
