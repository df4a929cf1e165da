"""UniPC: a predictor, and the same formula again as a corrector.

The answer at the predicted point corrects that point without being asked
again, which lifts the order by one (Zhao et al. 2023, algorithms 5 and 6).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ldm_jax.diffusion.samplers.dpm_solver import span
from ldm_jax.diffusion.samplers.sampler_table import X0, A, B, C, D, Row, X, row
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level


def unipc(
  grid: NoiseLevels, order: int = 2, is_bh2: bool = True, corrects: bool = True
) -> Iterator[Row]:
  """UniPC of x0 with B(h) = e^h - 1, or h (bh1).

  Without the corrector it is UniP, of one order less.

  Orders rise from 1 and fall to 1 again over the last steps, as in the
  authors' code.
  """
  steps, orders = grid.steps(), []
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
  answers: Sequence[np.ndarray | None],
  is_bh2: bool,
  corrects: bool,
) -> np.ndarray:
  """From levels[1] to levels[0]  (Zhao et al. 2023, eq. 5 and 8 in x0).

  Args:
    x: at levels[1].
    answers: x0 at each of the levels; the first only where it corrects.
  """
  t, s = levels[:2]
  here = answers[1]
  h = span(s, t)
  moved = t.sigma / s.sigma * x - t.signal * np.expm1(-h) * here
  behind = [span(s, level) / h for level in levels[2 : order + 1]]
  slopes = [
    (answer - here) / r
    for answer, r in zip(answers[2 : order + 1], behind, strict=True)
  ]
  nodes = [*behind, 1.0] if corrects else behind
  if corrects:
    slopes.append(answers[0] - here)
  if not nodes:
    return moved
  scale = np.expm1(-h) if is_bh2 else -h
  parts = _weights(nodes, h, scale)
  return moved - t.signal * scale * sum(
    w * slope for w, slope in zip(parts, slopes, strict=True)
  )


def _weights(nodes: Sequence[float], h: float, scale: float) -> np.ndarray:
  """rho with sum_k rho_k r_k^(n - 1) = n! phi_(n + 1) / B  (their eq. 5).

  One node takes 1/2, whatever B is: that already has the order.
  """
  if len(nodes) == 1:
    return np.array([0.5])
  z, wanted = -h, []
  phi = np.expm1(z) / z - 1
  for n in range(1, len(nodes) + 1):
    wanted.append(phi * math.factorial(n) / scale)
    phi = phi / z - 1 / math.factorial(n + 1)
  powers = np.vander(nodes, increasing=True).T
  return np.linalg.solve(powers, wanted)
