"""What a network may be asked for, and how the answer becomes a pair.

Every parameterisation asks for y = a x0 + b eps with known a and b. Together
with x_t = signal x0 + sigma eps that is two equations in two unknowns, so one
formula serves all.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.schedule import Schedule, Time, like

Prediction = Literal["eps", "x0", "v"]


class Estimate(NamedTuple):
  """What is believed of x_t: the clean image and the noise inside it."""

  x0: Float[Array, "b *rest"]
  eps: Float[Array, "b *rest"]


Denoiser = Callable[[Float[Array, "b *rest"], Time], Estimate]

# (a, b) of y = a x0 + b eps. v: Salimans and Ho 2022, appendix D.
_COEFFICIENTS = {
  "eps": lambda signal, sigma: (jnp.zeros_like(signal), jnp.ones_like(sigma)),
  "x0": lambda signal, sigma: (jnp.ones_like(signal), jnp.zeros_like(sigma)),
  "v": lambda signal, sigma: (-sigma, signal),
}


def target(
  prediction: Prediction,
  schedule: Schedule,
  x0: Float[Array, "b *rest"],
  t: Time,
  noise: Float[Array, "b *rest"],
) -> Float[Array, "b *rest"]:
  """y = a_t x0 + b_t noise, what the network should answer at x_t."""
  a, b = _COEFFICIENTS[prediction](*schedule.signal_and_sigma(t))
  return like(a, x0) * x0 + like(b, x0) * noise


def to_pair(
  prediction: Prediction,
  schedule: Schedule,
  xt: Float[Array, "b *rest"],
  t: Time,
  output: Float[Array, "b *rest"],
) -> Estimate:
  """Solves x_t = signal x0 + sigma eps, y = a x0 + b eps for (x0, eps)."""
  signal, sigma = schedule.signal_and_sigma(t)
  a, b = _COEFFICIENTS[prediction](signal, sigma)
  determinant = like(signal * b - sigma * a, xt)
  x0 = (like(b, xt) * xt - like(sigma, xt) * output) / determinant
  eps = (like(signal, xt) * output - like(a, xt) * xt) / determinant
  return Estimate(x0, eps)


def x0_gain(prediction: Prediction, schedule: Schedule, t: Time) -> Time:
  """|d x0 / d y|: how far an error of the output moves x0.

  sigma / signal for eps, 1 for x0, sigma for v; its square turns a squared
  error of the output into one of x0.
  """
  signal, sigma = schedule.signal_and_sigma(t)
  a, b = _COEFFICIENTS[prediction](signal, sigma)
  return jnp.abs(sigma / (signal * b - sigma * a))
