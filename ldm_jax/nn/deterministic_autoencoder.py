"""What autoencoders without a random bottleneck have in common."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.bottleneck import DeterministicPosterior
from ldm_jax.nn.first_stage import latent_shape


class DeterministicAutoencoder(nn.Module):
  """A `FirstStage` whose latents are its encoder's output itself.

  A subclass has `halvings` and `latent_channels`, and makes `encoder` and
  `decoder` in its `setup`.
  """

  @property
  def stride(self) -> int:
    """f: pixels per latent, along one side."""
    return 2**self.halvings

  def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, c) of the latents of a height x width image.

    Raises:
      ValueError: a side is not a multiple of the stride.
    """
    return latent_shape(height, width, self.halvings, self.latent_channels)

  def encode(self, images: Float[Array, "b h w 3"]) -> DeterministicPosterior:
    """Latents of images in [-1, 1]."""
    self.latent_shape(*images.shape[1:3])
    return self.posterior(self.encoder(images))

  def posterior(
    self, moments: Float[Array, "b h w c"]
  ) -> DeterministicPosterior:
    """The encoder's output itself; needs no parameters."""
    return DeterministicPosterior(moments.astype(jnp.float32))

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Images of latents, about [-1, 1], not clipped."""
    return self.decoder(latents)

  def __call__(
    self, images: Float[Array, "b h w 3"], noise: Float[Array, "b hz wz c"]
  ) -> tuple[Float[Array, "b h w 3"], Float[Array, ""]]:
    """Reconstructions, and a loss of 0."""
    del noise
    return self.decode(self.encode(images).mode()), jnp.zeros(())
