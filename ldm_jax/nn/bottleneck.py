"""Bottlenecks between encoder and decoder, and their losses."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, NonNegative


@flax.struct.dataclass
class DiagonalGaussian:
  """q(z | x) = N(mean, exp(logvar)), every element of [b h w c] on its own."""

  mean: Any
  logvar: Any

  def mode(self) -> Float[Array, "b h w c"]:
    """The most likely latents."""
    return self.mean

  def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """mean + std noise, noise standard normal."""
    return self.mean + jnp.exp(0.5 * self.logvar) * noise

  def kl(self) -> Float[Array, " b"]:
    """KL(q || N(0, 1)) = sum (mean^2 + var - 1 - logvar) / 2, per image."""
    each = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
    return 0.5 * each.sum(axis=(1, 2, 3))

  @property
  def moments(self) -> Float[Array, "b h w c2"]:
    """mean and logvar along the channels, as an encoder outputs them."""
    return jnp.concatenate([self.mean, self.logvar], axis=-1)


@flax.struct.dataclass
class DeterministicPosterior:
  """A posterior without variance: latents [b h w c] before quantisation."""

  mean: Any

  def mode(self) -> Float[Array, "b h w c"]:
    """The latents."""
    return self.mean

  def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The latents, whatever the noise."""
    del noise
    return self.mean

  @property
  def moments(self) -> Float[Array, "b h w c"]:
    """The latents, as an encoder outputs them."""
    return self.mean


class GaussianBottleneck(nn.Module):
  """A KL-regularised Gaussian (Kingma and Welling 2014), logvar in [-30, 20].

  The clamp of logvar is LDM's.
  """

  expansion = 2  # encoder channels per latent channel: mean and logvar

  def posterior(self, moments: Float[Array, "b h w c2"]) -> DiagonalGaussian:
    """Splits the encoder's channels into mean and clamped logvar."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return DiagonalGaussian(mean, jnp.clip(logvar, -30.0, 20.0))

  def quantize(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b h w c"]:
    """The decoder's input: the latents as they are."""
    return latents

  def loss(
    self, posterior: DiagonalGaussian, latents: Float[Array, "b h w c"]
  ) -> Float[Array, ""]:
    """KL summed over each image and averaged over the batch (LDM)."""
    del latents
    return posterior.kl().mean()


class VectorQuantizer(nn.Module):
  """The nearest of `codes` vectors  (van den Oord et al. 2017, eq. 2).

  Attributes:
    codes: size of the codebook.
    width: channels of a code, the latent channels.
    beta: weight of the codebook term. LDM, and so the released weights, has it
      there and not, as in the paper's eq. 3, on the commitment term.
  """

  codes: Count = 8192
  width: Count = 3
  beta: NonNegative = 0.25

  expansion = 1

  def setup(self):
    bound = 1.0 / self.codes
    init = lambda key, shape: jax.random.uniform(
      key, shape, jnp.float32, -bound, bound
    )
    self.codebook = self.param("codebook", init, (self.codes, self.width))

  def posterior(
    self, moments: Float[Array, "b h w c"]
  ) -> DeterministicPosterior:
    """Latents before quantisation; see `quantize`."""
    return DeterministicPosterior(moments.astype(jnp.float32))

  def nearest(self, latents: Float[Array, "b h w c"]) -> Array:
    """The code closest to every latent vector, by squared distance."""
    flat = latents.reshape(-1, self.width)
    distance = (self.codebook**2).sum(-1) - 2 * flat @ self.codebook.T
    codes = self.codebook[jnp.argmin(distance, axis=-1)]
    return codes.reshape(latents.shape)

  def quantize(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b h w c"]:
    """The nearest codes, with the straight-through gradient to the latents."""
    return latents + jax.lax.stop_gradient(self.nearest(latents) - latents)

  def loss(
    self, posterior: DeterministicPosterior, latents: Float[Array, "b h w c"]
  ) -> Float[Array, ""]:
    """mean |sg[code] - z|^2 + beta mean |code - sg[z]|^2."""
    del posterior
    codes, sg = self.nearest(latents), jax.lax.stop_gradient
    commitment = jnp.mean((sg(codes) - latents) ** 2)
    return commitment + self.beta * jnp.mean((codes - sg(latents)) ** 2)
