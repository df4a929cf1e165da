"""The protocol of a first stage: images to latents, and back."""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.bottleneck import DeterministicPosterior


@runtime_checkable
class Posterior(Protocol):
  """q(z | x), a JAX pytree; see bottleneck.py for the two implementations."""

  def mode(self) -> Float[Array, "b h w c"]:
    """The most likely latents."""
    ...

  def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Latents from standard normal noise."""
    ...

  @property
  def moments(self) -> Float[Array, "b h w k"]:
    """What `FirstStage.posterior` makes this posterior of; for caching."""
    ...


@runtime_checkable
class FirstStage(Protocol):
  """A Linen module that encodes images as latents, and decodes them.

  Any module with these members can be `LatentDiffusion.first_stage`.

  Attributes:
    stride: f, pixels per latent along one side.
    latent_channels: c of the latents.
  """

  @property
  def stride(self) -> int: ...

  @property
  def latent_channels(self) -> int: ...

  def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, c) of the latents of a height x width image.

    Raises:
      ValueError: a side is not a multiple of the stride.
    """
    ...

  def encode(self, images: Float[Array, "b H W 3"]) -> Posterior:
    """q(z | x) of images in [-1, 1]; called through `apply`."""
    ...

  def posterior(self, moments: Float[Array, "b h w k"]) -> Posterior:
    """q(z | x) of cached `Posterior.moments`; called without parameters."""
    ...

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Images of latents, about [-1, 1]; called through `apply`."""
    ...

  def __call__(
    self, images: Float[Array, "b H W 3"], noise: Float[Array, "b h w c"]
  ) -> tuple[Float[Array, "b H W 3"], Float[Array, ""]]:
    """Reconstructions from sampled latents, and the bottleneck's loss.

    Its `init` gives the parameters of `encode` and `decode`.
    """
    ...

  def init(self, key: Array, *args: Any, **options: Any) -> Any:
    """As in every Linen module."""
    ...

  def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
    """As in every Linen module."""
    ...


def latent_shape(
  height: int, width: int, halvings: int, channels: int
) -> tuple[int, int, int]:
  """(h, w, c) of latents where an autoencoder halves images `halvings` times.

  Raises:
    ValueError: a side is not a multiple of 2 ** halvings.
  """
  stride = 2**halvings
  for side in (height, width):
    if side < stride or side % stride:
      near = max(1, round(side / stride)) * stride
      raise ValueError(
        f"image size {side} must be a multiple of {stride} (the autoencoder "
        f"halves it {halvings} times); try {near}"
      )
  return height // stride, width // stride, channels


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
