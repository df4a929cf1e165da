"""The first stage: images to latents downsampled by f, and back."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Below1, Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.bottleneck import (
  DeterministicPosterior,
  GaussianBottleneck,
  VectorQuantizer,
)
from ldm_jax.nn.first_stage import Posterior, latent_shape
from ldm_jax.nn.latent_normalization import (
  BatchStatistics,
  LatentNormalization,
)
from ldm_jax.nn.layers import (
  Remat,
  check_widths,
  conv,
  downsample,
  group_norm,
  remat_policy,
  upsample_conv,
)
from ldm_jax.nn.resnet import ResBlock
from ldm_jax.nn.transformer import PixelAttention

EPSILON = 1e-6  # of every norm in the autoencoder; the U-Net's is 1e-5


@dataclasses.dataclass(frozen=True)
class ConvStack:
  """The convolutional stack of encoder and decoder, which mirror each other.

  Attributes:
    channels: width of the first level, multiplied per level.
    blocks: residual blocks per level of the encoder; the decoder has one more.
    attention_levels: levels whose every block is followed by attention.
    has_mid_attention: attention at the lowest resolution (in all published
      ones but vq-f4-noattn).
    groups: of the group norms; 32 wherever the widths allow it.
    remat: rematerialisation of blocks; see `remat_policy`.
    dtype: of computation; norms, softmax and results stay float32.
  """

  channels: Count = 128
  multipliers: tuple[Count, ...] = (1, 2, 4, 4)
  blocks: Natural = 2
  attention_levels: tuple[Natural, ...] = ()
  has_mid_attention: bool = True
  dropout: Below1 = 0.0
  groups: Count = 32
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    check_widths(self.channels, self.multipliers, self.groups)

  @property
  def halvings(self) -> int:
    """How many times h and w are halved."""
    return len(self.multipliers) - 1

  def level_blocks(self, h: Array, level: int, blocks: int, side: str) -> Array:
    """`blocks` residual blocks, each with attention if the level has it."""
    for i in range(blocks):
      name = f"{side}_{level}_block_{i}"
      h = self.block(h, self.multipliers[level], name)
      if level in self.attention_levels:
        h = self.attention(h, f"{side}_{level}_attention_{i}")
    return h

  def up_level(self, h: Array, level: int) -> Array:
    """A level of the decoder, and the doubling to the next finer one."""
    h = self.level_blocks(h, level, self.blocks + 1, "up")
    if level == 0:
      return h
    name = f"up_{level}_upsample"
    return upsample_conv(h, h.shape[-1], name=name, dtype=self.dtype)

  def middle(self, h: Array) -> Array:
    """Block, attention, block at the lowest resolution."""
    h = self.block(h, self.multipliers[-1], "mid_block_0")
    if self.has_mid_attention:
      h = self.attention(h, "mid_attention")
    return self.block(h, self.multipliers[-1], "mid_block_1")

  def out(self, h: Array, features: int) -> Array:
    """Group norm, silu and the last convolution."""
    h = group_norm(
      h, name="norm_out", groups=self.groups, epsilon=EPSILON, dtype=self.dtype
    )
    return conv(jax.nn.silu(h), features, name="conv_out", dtype=self.dtype)

  def block(self, h: Array, multiplier: int, name: str) -> Array:
    """One residual block without an embedding."""
    block = remat_policy(self.remat, ResBlock)(
      self.channels * multiplier,
      epsilon=EPSILON,
      is_zero=False,
      dropout=self.dropout,
      groups=self.groups,
      dtype=self.dtype,
      name=name,
    )
    return block(h)

  def attention(self, h: Array, name: str) -> Array:
    """Self-attention with one head over all pixels."""
    attention = remat_policy(self.remat, PixelAttention)(
      epsilon=EPSILON,
      groups=self.groups,
      attention_backend=self.attention_backend,
      dtype=self.dtype,
      name=name,
    )
    return attention(h)


class Encoder(nn.Module):
  """Images to `features` channels at the lowest resolution."""

  trunk: ConvStack
  features: int
  has_quant_conv: bool = True

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W 3"]
  ) -> Float[Array, "b h w c"]:
    trunk, dtype = self.trunk, self.trunk.dtype
    h = conv(images, trunk.channels, name="conv_in", dtype=dtype)
    for level in range(trunk.halvings + 1):
      h = trunk.level_blocks(h, level, trunk.blocks, "down")
      if level < trunk.halvings:
        name = f"down_{level}_downsample"
        h = downsample(h, name=name, padding=(0, 1), dtype=dtype)
    h = trunk.out(trunk.middle(h), self.features)
    if self.has_quant_conv:
      h = conv(h, self.features, name="quant_conv", size=1, dtype=dtype)
    return h.astype(jnp.float32)


class Decoder(nn.Module):
  """Latents to images; level 0 is the finest, as in the encoder."""

  trunk: ConvStack
  features: int
  has_quant_conv: bool = True

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b H W 3"]:
    trunk, dtype = self.trunk, self.trunk.dtype
    width = trunk.channels * trunk.multipliers[-1]
    h = latents
    if self.has_quant_conv:
      h = conv(h, self.features, name="post_quant_conv", size=1, dtype=dtype)
    h = trunk.middle(conv(h, width, name="conv_in", dtype=dtype))
    for level in reversed(range(trunk.halvings + 1)):
      h = trunk.up_level(h, level)
    return trunk.out(h, 3).astype(jnp.float32)


class PixelSpace(nn.Module):
  """No autoencoder: the latents are the pixels, and f is 1; no parameters."""

  stride = 1
  latent_channels = 3

  def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, c) of the latents of a height x width image."""
    return height, width, self.latent_channels

  def encode(self, images: Float[Array, "b h w 3"]) -> DeterministicPosterior:
    """Images in [-1, 1] as they are."""
    return DeterministicPosterior(images.astype(jnp.float32))

  def posterior(
    self, moments: Float[Array, "b h w 3"]
  ) -> DeterministicPosterior:
    """The pixels themselves."""
    return DeterministicPosterior(moments.astype(jnp.float32))

  def decode(self, latents: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images as they are, not clipped."""
    return latents.astype(jnp.float32)

  def __call__(
    self, images: Float[Array, "b h w 3"], noise: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b h w 3"], Float[Array, ""]]:
    """Images as they are, and a loss of 0."""
    del noise
    return self.decode(images), jnp.zeros(())


class Autoencoder(nn.Module):
  """LDM's convolutional autoencoder (Rombach et al. 2022, section 3.1).

  The published sizes, all of 128 channels: kl-f4 has multipliers (1, 2, 4)
  and 3 latent channels, kl-f8 (1, 2, 4, 4) and 4, kl-f16 (1, 1, 2, 2, 4), 16
  and attention at level 4, kl-f32 (1, 1, 2, 2, 4, 4), 64 and levels 4 and 5.
  SD 3 and FLUX.1 have kl-f8 with 16 channels and no quant convolutions, FLUX.2
  has 32 channels.

  `encode` and `decode` know nothing of `normalization`; see
  `latent_normalization.normalize` and `denormalize`.

  Attributes:
    trunk: of the encoder, and of the decoder unless `decoder_trunk` is given.
    latent_channels: c of the latents.
    bottleneck: a Gaussian with a KL loss, or a vector quantiser.
    decoder_trunk: of a decoder of other widths or depth than the encoder.
    has_quant_conv, has_post_quant_conv: whether a 1 x 1 convolution ends the
      encoder, and begins the decoder.
    normalization: of the latents that a denoiser sees; None for their scale
      alone.

  Raises:
    ValueError: at construction, if encoder and decoder have other strides.
  """

  trunk: ConvStack = ConvStack()
  latent_channels: Count = 4
  bottleneck: GaussianBottleneck | VectorQuantizer = GaussianBottleneck()
  decoder_trunk: ConvStack | None = None
  has_quant_conv: bool = True
  has_post_quant_conv: bool = True
  normalization: LatentNormalization | BatchStatistics | None = None

  def __post_init__(self):
    decoder = self.decoder_trunk
    if decoder is not None and decoder.halvings != self.trunk.halvings:
      raise ValueError(
        f"the encoder halves images {self.trunk.halvings} times, the decoder "
        f"doubles latents {decoder.halvings} times; both need as many levels"
      )
    super().__post_init__()

  @property
  def stride(self) -> int:
    """f: pixels per latent, along one side."""
    return 2**self.trunk.halvings

  def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, c) of the latents of a height x width image.

    Raises:
      ValueError: a side is not a multiple of the stride.
    """
    return latent_shape(
      height, width, self.trunk.halvings, self.latent_channels
    )

  def setup(self):
    moments = self.bottleneck.expansion * self.latent_channels
    self.encoder = self.make_encoder(moments)
    self.decoder = Decoder(
      self.decoder_trunk or self.trunk,
      self.latent_channels,
      self.has_post_quant_conv,
    )

  def make_encoder(self, features: int) -> Encoder:
    """The encoder to so many channels, which `setup` names."""
    return Encoder(self.trunk, features, self.has_quant_conv)

  def encode(self, images: Float[Array, "b h w 3"]) -> Posterior:
    """q(z | x) of images in [-1, 1], as the bottleneck defines it."""
    self.latent_shape(*images.shape[1:3])
    return self.bottleneck.posterior(self.encoder(images))

  def posterior(self, moments: Float[Array, "b h w k"]) -> Posterior:
    """q(z | x) of the encoder's output; needs no parameters."""
    return self.bottleneck.posterior(moments)

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Images of latents, about [-1, 1], not clipped; VQ quantises first."""
    return self.decoder(self.bottleneck.quantize(latents))

  def __call__(
    self, images: Float[Array, "b h w 3"], noise: Float[Array, "b hz wz c"]
  ) -> tuple[Float[Array, "b h w 3"], Float[Array, ""]]:
    """Reconstructions from sampled latents, and the bottleneck's loss."""
    posterior = self.encode(images)
    latents = posterior.sample(noise)
    loss = self.bottleneck.loss(posterior, latents)
    return self.decode(latents), loss
