"""Multistep samplers of eps: Adams-Bashforth methods in several variables.

With x / signal as the unknown and r = sigma / signal as time, dx/dr = eps, so
a polynomial through the last estimates of eps is integrated over the step.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ldm_jax.diffusion.samplers.ode_paths import (
  RATIO_PATH,
  OdePath,
  path_of,
)
from ldm_jax.diffusion.samplers.sampler_table import (
  EPS,
  X0,
  A,
  B,
  C,
  D,
  E,
  Row,
  X,
  row,
)
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import MIN_ALPHA_BAR, Level

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def weights(
  nodes: Sequence[float | int],
  start: float,
  end: float,
  variable: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Integrals over r of the Lagrange polynomials in variable(r).

  By Gauss-Legendre quadrature in ln r, or in r where the step ends at 0; exact
  to rounding for polynomials of r, and for those of ln r away from 0.
  """
  if end > 0:
    low, high = np.log(start), np.log(end)
    u = (high + low) / 2 + (high - low) / 2 * NODES
    r, measure = np.exp(u), (high - low) / 2 * WEIGHTS * np.exp(u)
  else:
    r, measure = start / 2 * (1 + NODES), -start / 2 * WEIGHTS
  knots, points = variable(np.asarray(nodes)), variable(r)
  integrals = []
  for k, knot in enumerate(knots):
    others = np.delete(knots, k)
    basis = np.prod((points[:, None] - others) / (knot - others), axis=1)
    integrals.append(np.sum(measure * basis))
  return np.array(integrals)


def _adams(
  noise_levels: NoiseLevels,
  order: Callable[[int], int],
  variable: Callable[[np.ndarray], np.ndarray],
  path: OdePath = RATIO_PATH,
) -> Iterator[Row]:
  """Every step from the last `order(i)` slopes."""
  steps, levels = noise_levels.steps(), noise_levels.levels
  slope, clock = path.slope, path.clock
  for i, (s, t) in enumerate(steps):
    nodes = [clock(levels[i - k]) for k in range(order(i))]
    coefficients = weights(nodes, clock(s), clock(t), variable)
    change = sum(
      w * e for w, e in zip(coefficients, (slope, A, B, C), strict=False)
    )
    start = X0 + clock(s) * slope
    yield row(s, t, x=path.scale(t) * (start + change), a=slope, b=A, c=B)


def lms(noise_levels: NoiseLevels, order: int = 4) -> Iterator[Row]:
  """Linear multistep: Adams-Bashforth in sigma / signal; k-diffusion's LMS.

  On a rectified flow, in s.
  """
  order_of, path = lambda i: min(i + 1, order), path_of(noise_levels)
  return _adams(noise_levels, order_of, lambda u: u, path)


def deis(
  noise_levels: NoiseLevels,
  order: int = 3,
  options: SolverOptions = SolverOptions(),
) -> Iterator[Row]:
  """DEIS in log-rho: polynomials in ln(sigma / signal)  (Zhang and Chen 2023).

  Their table 2's "rho-AB" with the logarithm as variable, which diffusers and
  others know as DEIS.
  """
  order_of = lambda i: noise_levels.order(i, order, options)
  return _adams(noise_levels, order_of, np.log)


def transfer(s: Level, t: Level, x: np.ndarray, eps: np.ndarray) -> np.ndarray:
  """DDIM's step from any x with any eps  (Liu et al. 2022, eq. 11)."""
  kept = t.signal / s.signal
  return kept * x + (t.sigma - kept * s.sigma) * eps


# Adams-Bashforth for even steps, the newest estimate first.
_EVEN = {
  2: np.array([3, -1]) / 2,
  3: np.array([23, -16, 5]) / 12,
  4: np.array([55, -59, 37, -9]) / 24,
}


def plms(noise_levels: NoiseLevels) -> Iterator[Row]:
  """Pseudo linear multistep  (Liu et al. 2022), started as in LDM.

  The first step is Heun's, so n steps evaluate the network n + 1 times.
  """
  yield from _even(noise_levels, [], 0)


def pndm_prk(noise_levels: NoiseLevels) -> Iterator[Row]:
  """Three pseudo Runge-Kutta steps, then plms  (Liu et al. 2022, alg. 2).

  Evaluates the network 9 times more than there are steps. Fewer than 4 steps
  are plms, and so are steps from pure noise, where eps of another time gives
  no x0.
  """
  steps = noise_levels.steps()
  if len(steps) < 4 or steps[0][0].is_noise:
    yield from plms(noise_levels)
    return
  kept = []
  for i in range(3):
    s, first, middle, t = _halves(noise_levels, i)
    older = dict(zip("de", kept, strict=False))
    kept = [C, D]
    yield row(
      s, first, x=transfer(s, first, X, EPS), a=X, b=EPS / 6, c=EPS, **older
    )
    yield row(middle, middle, x=transfer(s, middle, A, EPS), b=B + EPS / 3)
    yield row(middle, t, x=transfer(s, t, A, EPS), b=B + EPS / 3)
    yield row(t, t, x=transfer(s, t, A, B + EPS / 6))
  yield from _even(noise_levels, [C, D, E], 3)


def _halves(noise_levels: NoiseLevels, i: int) -> tuple[Level, ...]:
  """Where step i starts, its middle twice, and where it ends.

  diffusers' middles are half a stride from the start and from the end, which
  differ where times are rounded.
  """
  s, t = noise_levels.steps()[i]
  level_at = noise_levels.schedule.level_at
  if noise_levels.stride is None:
    middle = level_at((s.time + t.time) // 2, MIN_ALPHA_BAR)
    return s, middle, middle, t
  t, half = noise_levels.levels[i + 1], noise_levels.stride // 2
  first = level_at(s.time - half, MIN_ALPHA_BAR)
  return s, first, level_at(t.time + half, MIN_ALPHA_BAR), t


def _repeated(noise_levels: NoiseLevels) -> tuple[Level, Level]:
  """The first step, as PLMS does it again."""
  stride, levels = noise_levels.stride, noise_levels.levels
  if stride is None:
    return noise_levels.steps()[0]
  return noise_levels.schedule.level_at(levels[1].time + stride), levels[1]


def _even(
  noise_levels: NoiseLevels, kept: list[np.ndarray], first: int
) -> Iterator[Row]:
  """The steps from number `first` on, `kept` being earlier estimates."""
  steps = noise_levels.steps()
  for i in range(first, len(steps)):
    s, t = steps[i]
    if i == 0:
      yield row(s, t, x=transfer(s, t, X, EPS), a=X, c=EPS)
      if len(steps) > 1:
        s, t = _repeated(noise_levels)
        again = transfer(s, t, A, (EPS + C) / 2)
        yield row(noise_levels.levels[1], t, x=again)
      kept = [C]
      continue
    estimates = [EPS, *kept][:4]
    eps = sum(
      w * e for w, e in zip(_EVEN[len(estimates)], estimates, strict=True)
    )
    yield row(s, t, x=transfer(s, t, X, eps), c=EPS, d=C, e=D)
    kept = [C, D, E][: len(estimates)]
