"""Latents that can be scaled and turned as their images can."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Fraction, NonNegative, check_limits
from ldm_jax.nn.encoders.lpips import STRIDE
from ldm_jax.training.first_stage.regularizers import Batch, RegularizerInputs


@dataclasses.dataclass(frozen=True)
class EquivarianceRegularizer:
  """nll(tau x, D(tau z)), z ~ q(z | x)  (EQ-VAE, Kouzelis et al. 2025).

  tau turns by a random multiple of 90 degrees, one for the batch, and scales
  both sides by a factor; images and latents are resized alike, bilinearly as in
  the authors' code. The decoder gives a transformed image from transformed
  latents, and gradients reach encoder and decoder.

  The authors replace a step's reconstruction by this one with probability 1/2,
  with one factor of k / 32, k = 8 to 31. Here every step has both, which weight
  1 makes as frequent, and the mean over `scales`, so that each size is compiled
  once. There is no adversarial term on D(tau z).

  The decoder runs once more for each scale: (0.25, 0.5, 0.75) costs 0.9 of one
  decoder pass. With LPIPS the smallest image needs 16 pixels.

  Attributes:
    weight: of the term; 1 gives it as much as the reconstruction.
    scales: factors of both sides; each has to make whole latents. (1.0,) only
      turns.
    turns: by 90, 180 or 270 degrees; images that are not square by 180.
    is_antialiased: resize images and latents with antialiasing, which the
      authors' code does not.

  Raises:
    ValueError: there is no scale, or one is not above 0 and at most 1.
  """

  weight: NonNegative = 1.0
  scales: tuple[Fraction, ...] = (0.25, 0.5, 0.75)
  turns: bool = True
  is_antialiased: bool = False

  is_adaptive = False

  def __post_init__(self):
    check_limits(self)
    if not self.scales or 0 in self.scales:
      raise ValueError(
        f"scales={self.scales}: give factors above 0 and at most 1, such as "
        "(0.5,); (1.0,) only turns"
      )

  def init(self, key: Array, task: Any, batch: Batch) -> dict:
    """No parameters.

    Raises:
      ValueError: a scale does not make whole latents of this batch's images, or
        images that are too small for the task's LPIPS.
    """
    del key
    sides = batch["image"].shape[1:3]
    height, width, _ = task.autoencoder.latent_shape(*sides)
    for scale in self.scales:
      size = _scaled(scale, height, width)
      least = min(size) * sides[0] // height
      if task.perceptual is not None and least < STRIDE:
        raise ValueError(
          f"scale {scale} makes images of {least} pixels, and LPIPS needs "
          f"{STRIDE}; take larger scales, larger images or perceptual=None"
        )
    return {}

  def frozen_shapes(self, batch: Batch) -> dict:
    """No frozen parameters."""
    del batch
    return {}

  def load_frozen(self) -> dict:
    """No frozen parameters."""
    return {}

  def loss(
    self, inputs: RegularizerInputs, own: Any, frozen: Any
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The mean over scales, of one random turn."""
    del own, frozen
    key_noise, key_turn = jax.random.split(inputs.key)
    pair = inputs.images, inputs.sampled_latents(key_noise)
    if self.turns:
      quarters = jax.random.randint(key_turn, (), 1, 4)
      pair = tuple(turn(x, quarters) for x in pair)
    losses = [self._scaled_loss(inputs, pair, scale) for scale in self.scales]
    loss = jnp.stack(losses).mean()
    return loss, {"equivariance_loss": loss}

  def _scaled_loss(
    self, inputs: RegularizerInputs, pair: tuple[Array, Array], scale: float
  ) -> Float[Array, ""]:
    """nll of one scale, of images and latents that are turned already."""
    images, latents = pair
    size = _scaled(scale, *latents.shape[1:3])
    stride = images.shape[1] // latents.shape[1]
    target = self._resize(images, (size[0] * stride, size[1] * stride))
    recon = inputs.autoencoder.apply(
      inputs.variables, self._resize(latents, size), method="decode"
    )
    return inputs.nll(target, recon)

  def _resize(
    self, x: Float[Array, "b h w c"], size: tuple[int, int]
  ) -> Float[Array, "b h2 w2 c"]:
    shape = (len(x), *size, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=self.is_antialiased)


def turn(
  x: Float[Array, "b h w c"], quarters: Array
) -> Float[Array, "b h w c"]:
  """A batch turned by 90 degrees times 1, 2 or 3; not a square, by 180."""
  if x.shape[1] != x.shape[2]:
    return jnp.rot90(x, 2, (1, 2))
  branches = [lambda x, k=k: jnp.rot90(x, k, (1, 2)) for k in (1, 2, 3)]
  return jax.lax.switch(quarters - 1, branches, x)


def _scaled(scale: float, height: int, width: int) -> tuple[int, int]:
  """Sides of scaled latents.

  Raises:
    ValueError: they are not whole.
  """
  sides = []
  for side in (height, width):
    scaled = round(scale * side)
    if scaled < 1 or abs(scaled - scale * side) > 1e-6:
      raise ValueError(
        f"scale {scale} makes {scale * side:g} of {side} latents; take "
        f"multiples of {1 / side:g}"
      )
    sides.append(scaled)
  return sides[0], sides[1]
