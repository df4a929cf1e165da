"""Parameterizations: what a network predicts, and (x0, eps) from its output.

Every parameterization is y = a x0 + b eps with known a and b. Together with
x_t = signal x0 + sigma eps these are two equations in two unknowns, so one
formula serves all.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.schedule import Level, Schedule, Time, append_dims

Prediction = Literal["eps", "x0", "v", "flow"]


class Estimate(NamedTuple):
  """A denoiser's estimate at x_t: the clean image and the noise."""

  x0: Float[Array, "b *rest"]
  eps: Float[Array, "b *rest"]


# (x_t, level) -> Estimate. A level and not a time, because samplers may step
# between the times of a schedule, or give a network a rounded time; signal and
# sigma then say what x_t is made of.
Denoiser = Callable[[Float[Array, "b *rest"], Level], Estimate]

# (a, b) of y = a x0 + b eps. v: Salimans and Ho 2022, appendix D; flow: the
# velocity of a rectified flow, Liu et al. 2023, eq. 1, from image to noise.
_COEFFICIENTS = {
  "eps": lambda signal, sigma: (jnp.zeros_like(signal), jnp.ones_like(sigma)),
  "x0": lambda signal, sigma: (jnp.ones_like(signal), jnp.zeros_like(sigma)),
  "v": lambda signal, sigma: (-sigma, signal),
  "flow": lambda signal, sigma: (-jnp.ones_like(signal), jnp.ones_like(sigma)),
}


def target(
  prediction: Prediction,
  schedule: Schedule,
  x0: Float[Array, "b *rest"],
  t: Time,
  noise: Float[Array, "b *rest"],
) -> Float[Array, "b *rest"]:
  """y = a_t x0 + b_t noise, the target of the network's output at x_t."""
  a, b = _COEFFICIENTS[prediction](*schedule.signal_and_sigma(t))
  return append_dims(a, x0) * x0 + append_dims(b, x0) * noise


def to_estimate(
  prediction: Prediction,
  level: Level,
  xt: Float[Array, "b *rest"],
  output: Float[Array, "b *rest"],
) -> Estimate:
  """Solves x_t = signal x0 + sigma eps, y = a x0 + b eps for (x0, eps)."""
  _, signal, sigma = level
  a, b = _COEFFICIENTS[prediction](signal, sigma)
  determinant = append_dims(signal * b - sigma * a, xt)
  x0 = (append_dims(b, xt) * xt - append_dims(sigma, xt) * output) / determinant
  eps = (
    append_dims(signal, xt) * output - append_dims(a, xt) * xt
  ) / determinant
  return Estimate(x0, eps)


def with_thresholding(
  denoise: Denoiser, quantile: float | Array = 1.0, most: float | Array = 1.0
) -> Denoiser:
  """Dynamic thresholding of x0  (Saharia et al. 2022, section 2.3).

  For models of pixels. x0 is clipped to [-s, s] and divided by s, s being the
  quantile of |x0| of each image, between 1 and `most`; most 1 is static
  thresholding, clipping to [-1, 1]. eps follows from x_t and the new x0.
  """

  def thresholded(xt: Array, level: Level) -> Estimate:
    x0, _ = denoise(xt, level)
    size = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), quantile, axis=1)
    size = append_dims(jnp.clip(size, 1.0, most), x0)
    x0 = jnp.clip(x0, -size, size) / size
    rest = xt - append_dims(level.signal, xt) * x0
    return Estimate(x0, rest / append_dims(level.sigma, xt))

  return thresholded


def x0_gain(prediction: Prediction, schedule: Schedule, t: Time) -> Time:
  """|d x0 / d y|: the error of x0 per error of the output.

  sigma / signal for eps, 1 for x0, sigma for v, sigma / (signal + sigma) for
  flow; its square turns a squared error of the output into one of x0.
  """
  signal, sigma = schedule.signal_and_sigma(t)
  a, b = _COEFFICIENTS[prediction](signal, sigma)
  return jnp.abs(sigma / (signal * b - sigma * a))
