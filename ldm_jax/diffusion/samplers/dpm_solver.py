"""DPM-Solver of x0 or of eps, and its stochastic form.

In lambda = ln(signal / sigma) the ODE is linear but for x0, whose Taylor series
is integrated against the exponential (Lu et al. 2022b, eq. 8). With signal and
sigma exchanged the same holds of eps (Lu et al. 2022a, eq. 3.4).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers.sampler_table import (
  EPS,
  NOISE,
  X0,
  A,
  B,
  C,
  Row,
  X,
  row,
)
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level

DEFAULTS = SolverOptions()


def span(s: Level, t: Level) -> float:
  """h = lambda_t - lambda_s."""
  return t.half_log_snr - s.half_log_snr


class Estimates(NamedTuple):
  """An estimate of x0 or eps with its differences over the step.

  Attributes:
    value: at the step's start.
    slope: h times the first derivative in lambda.
    curvature: h^2 times the second one; None where only the slope is known, as
      in steps of order 1 and 2.
  """

  value: np.ndarray
  slope: np.ndarray | float = 0.0
  curvature: np.ndarray | float | None = None


def advance(
  s: Level,
  t: Level,
  x: np.ndarray,
  known: Estimates,
  eta: float = 0.0,
  options: SolverOptions = DEFAULTS,
) -> np.ndarray:
  """x_t from x_s and estimates of x0 or eps  (Lu et al. 2022b, eq. 14).

  (sigma_t / sigma_s) e^(-eta h) x + signal_t (1 - e^-(1 + eta) h) (x0 +
  slope / 2) + sigma_t sqrt(1 - e^(-2 eta h)) noise: the ODE with eta 0, the SDE
  with 1. Half the slope is their midpoint form; their Taylor form has (e^-h - 1
  + h) / h of it.
  """
  if not options.predict_x0:
    return _advance_eps(s, t, x, known, eta, options)
  h = span(s, t)
  change = _change((1 + eta) * h, t.signal, known, options)
  if not eta:
    return t.sigma / s.sigma * x + change
  noise = t.sigma * np.sqrt(-np.expm1(-2 * eta * h)) * NOISE
  return t.sigma / s.sigma * np.exp(-eta * h) * x + change + noise


def _change(
  h: float, signal: float, known: Estimates, options: SolverOptions
) -> np.ndarray:
  """signal times the integral of the Taylor series."""
  value, slope, curvature = known
  if curvature is None and options.solver_type == "midpoint":
    return -np.expm1(-h) * signal * (value + slope / 2)
  change = -np.expm1(-h) * signal * value
  if h == 0:
    return change
  if np.isinf(h):  # to the image
    return change + signal * slope
  change = change + (1 + np.expm1(-h) / h) * signal * slope
  if curvature is None:
    return change
  return change + (0.5 - (np.expm1(-h) + h) / h**2) * signal * curvature


def _advance_eps(
  s: Level,
  t: Level,
  x: np.ndarray,
  known: Estimates,
  eta: float,
  options: SolverOptions,
) -> np.ndarray:
  """The same of eps  (Lu et al. 2022a, eq. 3.7, and 2022b, appendix)."""
  if t.sigma == 0:
    return t.signal * X0  # the limit of order 1
  h = span(s, t)
  change = (1 + eta) * _change(-h, t.sigma, known, options)
  noise = np.sqrt(eta * np.expm1(2 * h)) * t.sigma * NOISE if eta else 0.0
  return t.signal / s.signal * x + change + noise


def dpmpp_2m(
  noise_levels: NoiseLevels,
  eta: float = 0.0,
  order: int = 2,
  options: SolverOptions = DEFAULTS,
) -> Iterator[Row]:
  """DPM-Solver++(2M), or (3M)  (Lu et al. 2022b, algorithm 2).

  With eta above 0 it solves the SDE (k-diffusion's sample_dpmpp_2m_sde).
  """
  estimate = X0 if options.predict_x0 else EPS
  steps = noise_levels.steps()
  for i, (s, t) in enumerate(steps):
    known = Estimates(estimate)
    order_now = noise_levels.order(i, order, options)
    if order_now > 1:
      h, before = span(s, t), span(steps[i - 1][0], s)
      slope = (estimate - A) * (h / before)
      known = Estimates(estimate, slope)
    if order_now == 3:
      older = span(steps[i - 2][0], steps[i - 1][0])
      change = slope - (A - B) * (h / older)
      slope = slope + change * (before / (before + older))
      bend = change * (h / (before + older))
      known = Estimates(estimate, slope, bend)
    update = advance(s, t, X, known, eta, options)
    yield row(s, t, x=update, a=estimate, b=A)


def dpmpp_2m_sde(
  noise_levels: NoiseLevels,
  eta: float = 1.0,
  order: int = 2,
  options: SolverOptions = DEFAULTS,
) -> Iterator[Row]:
  """DPM-Solver++(2M) for the SDE; see `dpmpp_2m`."""
  return dpmpp_2m(noise_levels, eta, order, options)


def dpmpp_2s(
  noise_levels: NoiseLevels,
  eta: float = 0.0,
  order: int = 2,
  options: SolverOptions = DEFAULTS,
) -> Iterator[Row]:
  """DPM-Solver++(2S), order 2: every second level lies within a step."""
  return _single_step(noise_levels, eta, order, options)


def dpmpp_3s(
  noise_levels: NoiseLevels,
  eta: float = 0.0,
  order: int = 3,
  options: SolverOptions = DEFAULTS,
) -> Iterator[Row]:
  """DPM-Solver++(3S), order 3: two levels of three lie within a step."""
  return _single_step(noise_levels, eta, order, options)


def _single_step(
  noise_levels: NoiseLevels, eta: float, order: int, options: SolverOptions
) -> Iterator[Row]:
  """Single-step DPM-Solver++ (Lu et al. 2022b, eq. 12 and appendix).

  The given levels serve as the inner ones, so that n steps evaluate the network
  n times; the last steps are of lower order where n leaves a remainder.
  """
  estimate = X0 if options.predict_x0 else EPS
  steps, base, middle = noise_levels.steps(), None, None
  orders = _orders(noise_levels, order, options)
  for (s, t), order_now in zip(steps, orders, strict=True):
    if order_now == 1:
      base = s
      update = advance(s, t, X, Estimates(estimate), eta, options)
      yield row(s, t, x=update, a=X, b=estimate)
      continue
    ratio = span(base, s) / span(base, t)
    slope, bend = (estimate - B) / ratio, None
    if order_now == 2:
      middle = s
    else:
      bend = 0.0
      if options.solver_type == "heun":
        near = span(base, middle) / span(base, t)
        first = (C - B) / near
        bend = 2 * (slope - first) / (ratio - near)
        slope = (ratio * first - near * slope) / (ratio - near)
    known = Estimates(B, slope, bend)
    yield row(s, t, x=advance(base, t, A, known, eta, options), c=estimate)


def _orders(
  noise_levels: NoiseLevels, order: int, options: SolverOptions
) -> list[int]:
  """1, 2, ..., order, repeated; the last step's is 1 where it must be."""
  steps = len(noise_levels.levels)
  cycle = list(range(1, order + 1)) * steps
  is_whole = steps % order == 0
  if not noise_levels.ends_clean:
    if is_whole and not options.lower_order_final:
      return cycle[:steps]
    if order == 3 and steps % 3 == 2:
      return cycle[:steps]
  return [*cycle[: steps - 1], 1]
