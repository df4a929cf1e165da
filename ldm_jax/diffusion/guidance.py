"""Guidance towards a condition: classifier-free, and by a classifier."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_jax.diffusion.prediction import Denoiser, Estimate
from ldm_jax.diffusion.schedule import Level, Time, append_dims


@runtime_checkable
class Guidance(Protocol):
  """What `LatentDiffusion.guided_denoiser` needs of a guidance.

  A user-defined guidance is a JAX pytree with these members, such as a
  NamedTuple or a `flax.struct.dataclass` of numbers, which may be traced.
  """

  def needs_unconditional(self) -> bool:
    """Whether `combine` uses the unconditional output; host only."""
    ...

  def check(self) -> None:
    """Raises ValueError for values out of range; host only."""
    ...

  def combine(
    self,
    unconditional: Float[Array, "b *rest"],
    conditional: Float[Array, "b *rest"],
    fraction: Time | float,
  ) -> Float[Array, "b *rest"]:
    """The guided output.

    Args:
      unconditional: the network's output with the negative condition.
      conditional: its output with the positive one.
      fraction: t / T, 0 at the image and 1 at pure noise.
    """
    ...


class ClassifierFreeGuidance(NamedTuple):
  """Classifier-free guidance  (Ho and Salimans 2022, eq. 6).

  Attributes:
    scale: 1 is the conditional model itself; the paper's w is scale - 1.
    rescale: phi in [0, 1], how far the deviation of the output is returned to
      that of the conditional one (Lin et al. 2023, eq. 15 and 16; they use
      0.7).
    start, stop: the interval of t / T with guidance; outside, the conditional
      output is taken (Kynkäänniemi et al. 2024).
  """

  # Any: numbers, or arrays without axes.
  scale: Any = 1.0
  rescale: Any = 0.0
  start: Any = 0.0
  stop: Any = 1.0

  def check(self) -> None:
    """Raises ValueError for values out of range."""
    if not all(math.isfinite(value) for value in self):
      raise ValueError(f"guidance must be finite numbers, got {tuple(self)}")
    if not 0 <= self.rescale <= 1:
      raise ValueError(f"guidance rescale must be 0 to 1, got {self.rescale}")
    if not 0 <= self.start <= self.stop <= 1:
      raise ValueError(
        "the interval of guidance must increase within 0 to 1 (0 is the image, "
        f"1 pure noise), got {self.start} to {self.stop}"
      )

  def needs_unconditional(self) -> bool:
    """Whether the unconditional output is used at all."""
    return self.scale != 1.0

  def combine(
    self,
    unconditional: Float[Array, "b *rest"],
    conditional: Float[Array, "b *rest"],
    fraction: Time | float,
  ) -> Float[Array, "b *rest"]:
    """unconditional + scale (conditional - unconditional).

    Of the network's output, be it eps, x0 or v; the three differ only in the
    rescaling. See `Guidance.combine`.
    """
    is_inside = (self.start <= fraction) & (fraction <= self.stop)
    scale = jnp.where(is_inside, self.scale, 1.0)
    guided = unconditional + scale * (conditional - unconditional)
    axes = tuple(range(1, guided.ndim))
    std = lambda y: jnp.std(y, axes, keepdims=True)
    # A new network's output is 0 everywhere, with no deviation to rescale.
    ratio = std(conditional) / jnp.maximum(std(guided), 1e-12)
    return guided * (1 + self.rescale * (ratio - 1))


def with_classifier_guidance(
  denoise: Denoiser,
  logits: Callable[[Array, Array], Float[Array, "b k"]],
  labels: Int[Array, " b"],
  scale: float | Array,
) -> Denoiser:
  """Classifier guidance  (Dhariwal and Nichol 2021, algorithm 2).

  eps - scale sigma d log p(y | x_t) / d x_t, and the x0 that follows from it.

  Args:
    logits: (x_t, t [b]) -> logits of a classifier of noisy images.
    labels: y of every image.
  """

  def guided(xt: Array, level: Level) -> Estimate:
    _, eps = denoise(xt, level)
    t = jnp.broadcast_to(level.time, (len(xt),))

    def log_probability(xt: Array) -> Array:
      each = jax.nn.log_softmax(logits(xt, t))
      return jnp.take_along_axis(each, labels[:, None], axis=1).sum()

    signal, sigma = append_dims(level.signal, xt), append_dims(level.sigma, xt)
    eps = eps - scale * sigma * jax.grad(log_probability)(xt)
    return Estimate((xt - sigma * eps) / signal, eps)

  return guided
