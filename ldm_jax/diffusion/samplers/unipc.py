"""UniPC: a predictor, and the same formula again as a corrector.

The estimate at the predicted point corrects that point without another
evaluation, which raises the order by one (Zhao et al. 2023, algorithms 5, 6).
"""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ldm_jax.diffusion.samplers.dpm_solver import span
from ldm_jax.diffusion.samplers.sampler_table import (
  EPS,
  X0,
  A,
  B,
  C,
  D,
  Row,
  X,
  row,
)
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level


def unipc(
  noise_levels: NoiseLevels,
  order: int = 2,
  is_bh2: bool = True,
  options: SolverOptions = SolverOptions(),
) -> Iterator[Row]:
  """UniPC of x0 or eps with B(h) = e^h - 1, or h (bh1).

  A step that is not corrected (`disable_corrector`) is UniP's, of one order
  less. Orders rise from 1 and fall to 1 again over the last steps, as in the
  authors' code.
  """
  steps, orders = noise_levels.steps(), []
  estimate = X0 if options.predict_x0 else EPS
  uncorrected = {
    i + 1 - noise_levels.skipped for i in options.disable_corrector
  }
  move = functools.partial(_move, is_bh2=is_bh2, is_x0=options.predict_x0)
  for i, (s, t) in enumerate(steps):
    levels = [level for level, _ in steps[i::-1]]
    x = X
    if i > 0 and i not in uncorrected:
      known = [s, *levels[1:]]
      x = move(known, orders[-1], A, [estimate, B, C, D], corrects=True)
    orders.append(_order(noise_levels, i, order, options))
    known = [t, *levels]
    ahead = move(known, orders[-1], x, [None, estimate, B, C], corrects=False)
    yield row(s, t, x=ahead, a=x, b=estimate, c=B, d=C)


def _order(
  noise_levels: NoiseLevels, i: int, order: int, options: SolverOptions
) -> int:
  left, (s, t) = len(noise_levels.levels) - i, noise_levels.steps()[i]
  if options.lower_order_final or t.sigma in (0, s.sigma):
    return min(order, i + 1, left)
  return min(order, i + 1)


def _move(
  levels: Sequence[Level],
  order: int,
  x: np.ndarray,
  estimates: Sequence[np.ndarray | None],
  is_bh2: bool,
  is_x0: bool,
  corrects: bool,
) -> np.ndarray:
  """From levels[1] to levels[0]  (Zhao et al. 2023, eq. 5 and 8 in x0).

  With signal and sigma exchanged the formulas of x0 are those of eps.

  Args:
    x: at levels[1].
    estimates: x0 or eps at each of the levels; the first is used by the
      corrector alone.
  """
  if not is_x0 and levels[0].sigma == 0:
    return levels[0].signal * X0  # the limit of order 1
  if not is_x0:
    levels = [Level(level.time, level.sigma, level.signal) for level in levels]
  t, s = levels[:2]
  x0 = estimates[1]
  h = span(s, t)
  first_order = t.sigma / s.sigma * x - t.signal * np.expm1(-h) * x0
  behind = [span(s, level) / h for level in levels[2 : order + 1]]
  slopes = [
    (estimate - x0) / r
    for estimate, r in zip(estimates[2 : order + 1], behind, strict=True)
  ]
  nodes = [*behind, 1.0] if corrects else behind
  if corrects:
    slopes.append(estimates[0] - x0)
  if not nodes:
    return first_order
  scale = np.expm1(-h) if is_bh2 else -h
  weights = _weights(nodes, h, scale)
  return first_order - t.signal * scale * sum(
    w * slope for w, slope in zip(weights, slopes, strict=True)
  )


def _weights(nodes: Sequence[float], h: float, scale: float) -> np.ndarray:
  """rho with sum_k rho_k r_k^(n - 1) = n! phi_(n + 1) / B  (their eq. 5).

  For one node it is 1/2, whatever B is; that has the order already.
  """
  if len(nodes) == 1:
    return np.array([0.5])
  z, moments = -h, []
  phi = np.expm1(z) / z - 1
  for n in range(1, len(nodes) + 1):
    moments.append(phi * math.factorial(n) / scale)
    phi = phi / z - 1 / math.factorial(n + 1)
  powers = np.vander(nodes, increasing=True).T
  return np.linalg.solve(powers, moments)
