"""A first stage: one linear layer per patch instead of convolutions."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.bottleneck import DiagonalGaussian


class PatchAutoencoder(nn.Module):
  """A linear variational autoencoder of patches of `stride` x `stride` pixels.

  Attributes:
    stride: side of a patch; pixels per latent.
    latent_channels: c of the latents.
  """

  stride: int = 4
  latent_channels: int = 8

  def setup(self):
    self.encoder = nn.Dense(2 * self.latent_channels)
    self.decoder = nn.Dense(3 * self.stride**2)

  def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, c) of the latents of a height x width image."""
    if height % self.stride or width % self.stride:
      raise ValueError(
        f"image size {height} x {width} must be a multiple of {self.stride}"
      )
    return height // self.stride, width // self.stride, self.latent_channels

  def encode(self, images: Float[Array, "b H W 3"]) -> DiagonalGaussian:
    """q(z | x) of images in [-1, 1]."""
    b, height, width, _ = images.shape
    h, w, _ = self.latent_shape(height, width)
    patches = images.reshape(b, h, self.stride, w, self.stride, 3)
    patches = patches.swapaxes(2, 3).reshape(b, h, w, -1)
    return self.posterior(self.encoder(patches))

  def posterior(self, moments: Float[Array, "b h w k"]) -> DiagonalGaussian:
    """q(z | x) of its mean and log-variance, as a latent cache holds them."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return DiagonalGaussian(mean, jnp.clip(logvar, -30.0, 20.0))

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Images of latents, about [-1, 1]."""
    b, h, w, _ = latents.shape
    f = self.stride
    patches = self.decoder(latents).reshape(b, h, w, f, f, 3)
    return patches.swapaxes(2, 3).reshape(b, h * f, w * f, 3)

  def __call__(
    self, images: Float[Array, "b H W 3"], noise: Float[Array, "b h w c"]
  ) -> tuple[Float[Array, "b H W 3"], Float[Array, ""]]:
    """Reconstructions of sampled latents, and the mean KL divergence."""
    posterior = self.encode(images)
    return self.decode(posterior.sample(noise)), posterior.kl().mean()
