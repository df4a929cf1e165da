"""Samplers that forget: each step knows nothing but its own answer.

A `NoiseLevels` gives the levels at which to ask and where each step lands.
"""

from collections.abc import Iterator

import numpy as np

from ldm_jax.diffusion.samplers.sampler_table import EPS, NOISE, X0, Row, X, row
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level

SIGMA_DATA = 0.5  # the images' spread that consistency models assume


def shrink(s: Level, t: Level) -> float:
  """1 - ab_s / ab_t: the noise that q adds between t and s, as a variance."""
  return 1 - (s.signal / t.signal) ** 2


def posterior_std(s: Level, t: Level) -> float:
  """Of q(x_t | x_s, x_0), t before s  (Ho et al. 2020, eq. 7)."""
  return np.sqrt(max(shrink(s, t), 0)) * t.sigma / s.sigma


def ddim(grid: NoiseLevels, eta: float = 0.0) -> Iterator[Row]:
  """DDIM (Song et al. 2021, eq. 12 and 16).

  x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t - std^2) eps + std noise, with std eta
  times the posterior's. eta 0 is deterministic, and Euler's method for the
  ODE of Karras et al. 2022 (eq. 4) on the same grid; eta 1 is ancestral
  sampling, DDPM's as well as k-diffusion's "Euler ancestral".
  """
  for s, t in grid.steps():
    std = min(eta * posterior_std(s, t), t.sigma)
    along = np.sqrt(t.sigma**2 - std**2)
    yield row(s, t, x=t.signal * X0 + along * EPS + std * NOISE)


def ddpm(grid: NoiseLevels, eta: float = 1.0) -> Iterator[Row]:
  """Ancestral sampling: x_t ~ q(x_t | x_s, x0)  (Ho et al. 2020, alg. 2).

  `eta` scales the noise, the paper's being 1. The variance is the posterior's
  (beta-tilde, LDM's choice), for any pair of times, so fewer steps than the
  schedule has are lawful; the step to the clean image adds none.
  """
  for s, t in grid.steps():
    from_x0 = t.signal * shrink(s, t) / s.sigma**2
    from_x = s.signal / t.signal * (t.sigma / s.sigma) ** 2
    noise = eta * posterior_std(s, t) * NOISE
    yield row(s, t, x=from_x0 * X0 + from_x * X + noise)


def lcm(grid: NoiseLevels, scaling: float = 10.0) -> Iterator[Row]:
  """Latent consistency models (Luo et al. 2023, alg. 3): denoise, noise again.

  The consistency function is c_out x0 + c_skip x with the boundary condition
  of their eq. 9; `scaling` multiplies the time in it.
  """
  last = len(grid.levels) - 1
  for i, (s, t) in enumerate(grid.steps()):
    time = s.time * scaling
    skip = SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2)
    out = time / np.sqrt(time**2 + SIGMA_DATA**2)
    clean = out * X0 + skip * X
    yield row(
      s, t, x=clean if i == last else t.signal * clean + t.sigma * NOISE
    )


def tcd(grid: NoiseLevels, eta: float = 0.3) -> Iterator[Row]:
  """Trajectory consistency distillation (Zheng et al. 2024, alg. 4).

  Goes down the trajectory to the time (1 - eta) t and back up to t by adding
  noise; eta is their gamma, in [0, 1].
  """
  last = len(grid.levels) - 1
  for i, (s, t) in enumerate(grid.steps()):
    if i == last:
      yield row(s, t, x=t.signal * X0 + t.sigma * EPS)
      continue
    low = grid.schedule.level_at(np.floor((1 - eta) * t.time))
    kept = t.signal / low.signal
    down = low.signal * X0 + low.sigma * EPS
    yield row(s, t, x=kept * down + np.sqrt(max(1 - kept**2, 0)) * NOISE)


def invert(grid: NoiseLevels, is_ahead: bool = False) -> Iterator[Row]:
  """DDIM backwards: from an image to the noise that it came from.

  Euler's method for the same ODE with time rising (Song et al. 2021, section
  4.3): x_s = sqrt(ab_s) x0 + sqrt(1 - ab_s) eps, the answer given at x_t.

  Args:
    is_ahead: tell the network the time it goes to rather than that it comes
      from, as diffusers does.
  """
  for s, t in reversed(grid.steps()):
    time = s.time if is_ahead else np.maximum(t.time, 0.0)
    asked = t._replace(time=time)  # a clean image has no time of its own
    yield row(asked, s, x=s.signal * X0 + s.sigma * EPS)
