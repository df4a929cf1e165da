"""Errors of reconstructions, and weights that change during training."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Natural, NonNegative, check_limits
from ldm_jax.pixels import to_uint8

PixelNorm = Literal["l1", "l2", "charbonnier"]
Term = Literal[
  "pixel", "perceptual", "bottleneck", "adversarial", "regularization"
]
CHARBONNIER = 1e-3  # epsilon, for pixels in [-1, 1]


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
  """A factor on the weight of a term of stage one's loss.

  Attributes:
    term: whose weight is multiplied.
    steps: at which the factor is given, ascending.
    factors: at those steps; between them it is interpolated linearly, before
      the first and after the last it is constant.

  Raises:
    ValueError: steps and factors do not pair, or steps do not ascend.
  """

  term: Term
  steps: tuple[Natural, ...]
  factors: tuple[NonNegative, ...]

  def __post_init__(self):
    check_limits(self)
    if not self.steps or len(self.steps) != len(self.factors):
      raise ValueError(
        f"{len(self.steps)} steps for {len(self.factors)} factors of the "
        f"{self.term} weight; give one factor for each step"
      )
    if list(self.steps) != sorted(set(self.steps)):
      raise ValueError(f"steps must ascend, got {self.steps}")


def pixel_error(
  norm: PixelNorm, error: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """|e|, e^2, or (e^2 + epsilon^2)^0.5 with epsilon 1e-3.

  The last is Charbonnier's (1994, eq. 16, as super-resolution uses it): L2 for
  small errors, L1 for large ones.
  """
  if norm == "l1":
    return jnp.abs(error)
  if norm == "l2":
    return jnp.square(error)
  return jnp.sqrt(jnp.square(error) + CHARBONNIER**2)


def psnr(
  ours: Float[Array, "b h w c"], theirs: Float[Array, "b h w c"]
) -> Float[Array, ""]:
  """Mean PSNR [dB] of images as 8-bit pixels."""
  levels = [to_uint8(each).astype(jnp.float32) for each in (ours, theirs)]
  error = jnp.square(levels[0] - levels[1]).mean((1, 2, 3))
  return 10 * jnp.log10(255.0**2 / error).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
  """The weights of stage one's loss, and its first two terms.

  nll = (pixel_weight e(x - r) + perceptual_weight LPIPS(x, r)) / e^s + s, where
  e is |.|, its square or Charbonnier's, LPIPS is one number per image and s is
  `logvar`; it is summed over pixels and averaged over images.

  Attributes:
    pixel_norm: "l1" in LDM, "l2" in the later sd-vae-ft-mse.
    bottleneck_weight: 1e-6 for the KL divergence, 1 for vector quantisation.
    reduction: "sum" over pixels (KL), or "mean" (VQ). The weights, the clip of
      the adversarial weight and Adam's epsilon depend on it.
    disc_weight: of the adversarial term.
    schedules: factors on the weights of terms, which change with the step.
  """

  pixel_norm: PixelNorm = "l1"
  pixel_weight: NonNegative = 1.0
  perceptual_weight: NonNegative = 1.0
  bottleneck_weight: NonNegative = 1e-6
  reduction: Literal["sum", "mean"] = "sum"
  disc_weight: NonNegative = 0.5
  schedules: tuple[WeightSchedule, ...] = ()

  def weight(self, term: Term, step: Array) -> Float[Array, ""]:
    """The weight of a term at a step; a regularizer has its own."""
    weights = {
      "pixel": self.pixel_weight,
      "perceptual": self.perceptual_weight,
      "bottleneck": self.bottleneck_weight,
      "adversarial": self.disc_weight,
      "regularization": 1.0,
    }
    factor = jnp.float32(weights[term])
    for schedule in self.schedules:
      if schedule.term == term:
        steps, factors = map(jnp.float32, (schedule.steps, schedule.factors))
        factor *= jnp.interp(jnp.float32(step), steps, factors)
    return factor

  def values(self, images: Float[Array, "b h w c"]) -> int:
    """How many values of an image nll is a sum of; 1 where it is a mean."""
    return images[0].size if self.reduction == "sum" else 1

  def negative_log_likelihood(
    self,
    error: Float[Array, "b h w c"],
    distance: Float[Array, " b"] | None,
    logvar: Float[Array, ""],
    step: Array,
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """nll at a step, and metrics.

    Args:
      error: of pixels in [-1, 1].
      distance: LPIPS of each image, or None.
      logvar: s.
    """
    metrics = {"l1": jnp.abs(error).mean()}
    each = self.weight("pixel", step) * pixel_error(self.pixel_norm, error)
    if distance is not None:
      metrics["lpips"] = distance.mean()
      weight = self.weight("perceptual", step)
      each = each + weight * distance[:, None, None, None]
    each = each / jnp.exp(logvar) + logvar
    if self.reduction == "mean":
      return each.mean(), metrics
    return each.sum() / len(error), metrics
