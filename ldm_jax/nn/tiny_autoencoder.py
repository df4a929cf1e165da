"""A small autoencoder of residual blocks, distilled from a larger one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count
from ldm_jax.nn.first_stage import DeterministicAutoencoder
from ldm_jax.nn.layers import conv, upsample

_LIMIT = 3.0  # decoded latents are limited to it, smoothly


class TinyResBlock(nn.Module):
  """relu(x + conv(relu(conv(relu(conv(x))))))."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    h = x
    for i in range(3):
      h = conv(h, x.shape[-1], name=f"conv_{2 * i}", dtype=self.dtype)
      h = jax.nn.relu(h) if i < 2 else h
    return jax.nn.relu(x + h)


def _resize(
  h: Array, features: int, name: str, stride: int, dtype: DTypeLike
) -> Array:
  """A 3 x 3 convolution without bias, which halves with stride 2."""
  layer = nn.Conv(
    features, (3, 3), stride, padding=1, use_bias=False, dtype=dtype, name=name
  )
  return layer(h)


class TinyEncoder(nn.Module):
  """Images in [-1, 1] to latents; layers are numbered in their order."""

  channels: int
  features: int
  blocks: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W 3"]
  ) -> Float[Array, "b h w c"]:
    h = conv((images + 1) / 2, self.channels, name="layer_0", dtype=self.dtype)
    layer = 1
    for level, count in enumerate(self.blocks):
      if level:
        h = _resize(h, self.channels, f"layer_{layer}", 2, self.dtype)
        layer += 1
      for _ in range(count):
        h = TinyResBlock(self.dtype, name=f"block_{layer}")(h)
        layer += 1
    h = conv(h, self.features, name=f"layer_{layer}", dtype=self.dtype)
    return h.astype(jnp.float32)


class TinyDecoder(nn.Module):
  """Latents to images, about [-1, 1]; layers are numbered in their order.

  Numbers are left out where a layer has no parameters.
  """

  channels: int
  blocks: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b H W 3"]:
    h = jnp.tanh(latents / _LIMIT) * _LIMIT
    h = jax.nn.relu(conv(h, self.channels, name="layer_0", dtype=self.dtype))
    layer = 2
    for level, count in enumerate(self.blocks):
      for _ in range(count):
        h = TinyResBlock(self.dtype, name=f"block_{layer}")(h)
        layer += 1
      if level < len(self.blocks) - 1:
        layer += 1
        h = _resize(upsample(h), self.channels, f"layer_{layer}", 1, self.dtype)
        layer += 1
    h = conv(h, 3, name=f"layer_{layer}", dtype=self.dtype)
    return 2 * h.astype(jnp.float32) - 1


class TinyAutoencoder(DeterministicAutoencoder):
  """TAESD, diffusers' AutoencoderTiny: a `FirstStage` without randomness.

  Its latents are those of a larger autoencoder after scaling, so that their
  own scale is 1.

  Attributes:
    channels: of every layer.
    encoder_blocks: residual blocks of each level, the finest first.
    decoder_blocks: of each level, the coarsest first.
    dtype: of computation; results stay float32.

  Raises:
    ValueError: at construction, if encoder and decoder have other strides.
  """

  channels: Count = 64
  latent_channels: Count = 4
  encoder_blocks: tuple[Count, ...] = (1, 3, 3, 3)
  decoder_blocks: tuple[Count, ...] = (3, 3, 3, 1)
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    encoder, decoder = len(self.encoder_blocks), len(self.decoder_blocks)
    if not encoder or encoder != decoder:
      raise ValueError(
        f"encoder_blocks has {encoder} levels, decoder_blocks {decoder}; both "
        "need as many"
      )
    super().__post_init__()

  @property
  def halvings(self) -> int:
    """How many times h and w are halved."""
    return len(self.encoder_blocks) - 1

  def setup(self):
    self.encoder = TinyEncoder(
      self.channels, self.latent_channels, self.encoder_blocks, self.dtype
    )
    self.decoder = TinyDecoder(self.channels, self.decoder_blocks, self.dtype)
