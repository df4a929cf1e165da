"""UniPC: a predictor, and the same formula again as a corrector.

The estimate at the predicted point corrects that point without another
evaluation, which raises the order by one (Zhao et al. 2023, algorithms 5, 6).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ldm_jax.diffusion.samplers.dpm_solver import span
from ldm_jax.diffusion.samplers.sampler_table import X0, A, B, C, D, Row, X, row
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level


def unipc(
  noise_levels: NoiseLevels,
  order: int = 2,
  is_bh2: bool = True,
  corrects: bool = True,
) -> Iterator[Row]:
  """UniPC of x0 with B(h) = e^h - 1, or h (bh1).

  Without the corrector it is UniP, of one order less. Orders rise from 1 and
  fall to 1 again over the last steps, as in the authors' code.
  """
  steps, orders = noise_levels.steps(), []
  for i, (s, t) in enumerate(steps):
    levels = [level for level, _ in steps[i::-1]]
    x = X
    if i > 0 and corrects:
      known = [s, *levels[1:]]
      x = _move(known, orders[-1], A, [X0, B, C, D], is_bh2, corrects=True)
    orders.append(min(order, i + 1, len(steps) - i))
    known = [t, *levels]
    ahead = _move(known, orders[-1], x, [None, X0, B, C], is_bh2, False)
    yield row(s, t, x=ahead, a=x, b=X0, c=B, d=C)


def _move(
  levels: Sequence[Level],
  order: int,
  x: np.ndarray,
  estimates: Sequence[np.ndarray | None],
  is_bh2: bool,
  corrects: bool,
) -> np.ndarray:
  """From levels[1] to levels[0]  (Zhao et al. 2023, eq. 5 and 8 in x0).

  Args:
    x: at levels[1].
    estimates: x0 at each of the levels; the first is used by the corrector
      alone.
  """
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
