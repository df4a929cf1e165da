"""Multistep samplers of x0: DPM-Solver++ and its stochastic form.

In lambda = ln(signal / sigma) the ODE is linear but for x0, whose Taylor series
is integrated against the exponential (Lu et al. 2022b, eq. 8).
"""

from collections.abc import Iterator

import numpy as np

from ldm_jax.diffusion.samplers.sampler_table import (
  NOISE,
  X0,
  A,
  B,
  Row,
  X,
  row,
)
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level


def span(s: Level, t: Level) -> float:
  """h = lambda_t - lambda_s."""
  return t.half_log_snr - s.half_log_snr


def advance(
  s: Level,
  t: Level,
  x: np.ndarray,
  x0: np.ndarray,
  slope: np.ndarray | float = 0.0,
  eta: float = 0.0,
) -> np.ndarray:
  """x_t from x_s, x0 and h times its slope  (Lu et al. 2022b, eq. 14).

  (sigma_t / sigma_s) e^(-eta h) x + signal_t (1 - e^-(1 + eta) h) (x0 +
  slope / 2) + sigma_t sqrt(1 - e^(-2 eta h)) noise: the ODE with eta 0, the SDE
  with 1. Half the slope is their midpoint form.
  """
  h = span(s, t)
  change = -np.expm1(-(1 + eta) * h) * t.signal * (x0 + slope / 2)
  if not eta:
    return t.sigma / s.sigma * x + change
  noise = t.sigma * np.sqrt(-np.expm1(-2 * eta * h)) * NOISE
  return t.sigma / s.sigma * np.exp(-eta * h) * x + change + noise


def dpmpp_2m(noise_levels: NoiseLevels, eta: float = 0.0) -> Iterator[Row]:
  """DPM-Solver++(2M)  (Lu et al. 2022b, algorithm 2), order 2.

  With eta above 0 it solves the SDE (k-diffusion's sample_dpmpp_2m_sde).
  """
  steps = noise_levels.steps()
  for i, (s, t) in enumerate(steps):
    slope = 0.0
    if noise_levels.order(i, 2) == 2:
      before = span(steps[i - 1][0], s)
      slope = (X0 - A) * (span(s, t) / before)
    yield row(s, t, x=advance(s, t, X, X0, slope, eta), a=X0)


def dpmpp_2m_sde(noise_levels: NoiseLevels, eta: float = 1.0) -> Iterator[Row]:
  """DPM-Solver++(2M) for the SDE; see `dpmpp_2m`."""
  return dpmpp_2m(noise_levels, eta)


def dpmpp_2s(noise_levels: NoiseLevels) -> Iterator[Row]:
  """DPM-Solver++(2S), order 2: every second level lies within a step."""
  return _single_step(noise_levels, 2)


def dpmpp_3s(noise_levels: NoiseLevels) -> Iterator[Row]:
  """DPM-Solver++(3S), order 3: two levels of three lie within a step."""
  return _single_step(noise_levels, 3)


def _single_step(noise_levels: NoiseLevels, order: int) -> Iterator[Row]:
  """Single-step DPM-Solver++ (Lu et al. 2022b, eq. 12 and appendix).

  The given levels serve as the inner ones, so that n steps evaluate the network
  n times; the last steps are of lower order where n leaves a remainder.
  """
  steps, base = noise_levels.steps(), None
  for (s, t), order_now in zip(steps, _orders(len(steps), order), strict=True):
    if order_now == 1:
      base = s
      yield row(s, t, x=advance(s, t, X, X0), a=X, b=X0)
      continue
    h, r = span(base, t), span(base, s) / span(base, t)
    slope = (X0 - B) / r
    if order_now == 2:
      yield row(s, t, x=advance(base, t, A, B, slope))
    else:
      rest = (1 + np.expm1(-h) / h) * t.signal * slope
      yield row(s, t, x=advance(base, t, A, B) + rest)


def _orders(steps: int, order: int) -> list[int]:
  """1, 2, ..., order, repeated; the last step's is 1."""
  cycle = list(range(1, order + 1)) * steps
  return [*cycle[: steps - 1], 1]
