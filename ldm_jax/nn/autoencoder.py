"""The first stage: images to latents downsampled by f, and back."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count
from ldm_jax.nn.bottleneck import (
  DeterministicPosterior,
  GaussianBottleneck,
  VectorQuantizer,
)
from ldm_jax.nn.conv_stack.networks import ConvStack, Decoder, Encoder
from ldm_jax.nn.first_stage import Posterior, latent_shape
from ldm_jax.nn.latent_normalization import (
  BatchStatistics,
  LatentNormalization,
)


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
