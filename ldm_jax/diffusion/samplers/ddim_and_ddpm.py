"""One-step samplers: each step uses the network's current estimate alone."""

from collections.abc import Iterator

import numpy as np

from ldm_jax.diffusion.samplers.sampler_table import EPS, NOISE, X0, Row, X, row
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level

SIGMA_DATA = 0.5  # standard deviation of images, as consistency models assume


def added_variance(s: Level, t: Level) -> float:
  """1 - ab_s / ab_t: variance of the noise that q adds from t to s."""
  return 1 - (s.signal / t.signal) ** 2


def posterior_std(s: Level, t: Level) -> float:
  """Standard deviation of q(x_t | x_s, x_0), t < s  (Ho et al. 2020, eq. 7)."""
  return np.sqrt(max(added_variance(s, t), 0)) * t.sigma / s.sigma


def ddim(noise_levels: NoiseLevels, eta: float = 0.0) -> Iterator[Row]:
  """DDIM (Song et al. 2021, eq. 12 and 16).

  x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t - std^2) eps + std noise, with std eta
  times the posterior's. eta 0 is deterministic, and Euler's method for the
  ODE of Karras et al. 2022 (eq. 4) at the same levels; eta 1 is ancestral
  sampling, that of DDPM and of k-diffusion's "Euler ancestral".
  """
  for s, t in noise_levels.steps():
    std = min(eta * posterior_std(s, t), t.sigma)
    direction = np.sqrt(t.sigma**2 - std**2)
    yield row(s, t, x=t.signal * X0 + direction * EPS + std * NOISE)


def ddpm(
  noise_levels: NoiseLevels,
  eta: float = 1.0,
  options: SolverOptions = SolverOptions(),
) -> Iterator[Row]:
  """Ancestral sampling: x_t ~ q(x_t | x_s, x0)  (Ho et al. 2020, alg. 2).

  `eta` scales the noise, the paper's being 1. The variance is the posterior's
  (beta-tilde, LDM's choice), for any pair of times, so that there may be fewer
  steps than the schedule has; the step to the clean image adds none. With
  "fixed_large" the variance is beta, and is added to every step that does not
  start at time 0.
  """
  is_large = options.variance_type == "fixed_large"
  for s, t in noise_levels.steps():
    from_x0 = t.signal * added_variance(s, t) / s.sigma**2
    from_x = s.signal / t.signal * (t.sigma / s.sigma) ** 2
    std = posterior_std(s, t)
    if is_large:
      std = np.sqrt(added_variance(s, t)) if s.time > 0 else 0.0
    noise = eta * std * NOISE
    yield row(s, t, x=from_x0 * X0 + from_x * X + noise)


def lcm(
  noise_levels: NoiseLevels, options: SolverOptions = SolverOptions()
) -> Iterator[Row]:
  """Latent consistency models (Luo et al. 2023, alg. 3).

  Each step denoises to x0, and adds noise of the next level.

  The consistency function is c_out x0 + c_skip x with the boundary condition
  of their eq. 9; `timestep_scaling` multiplies the time in it. A flow's x0 is x
  at the image by itself, so it has no c_skip.
  """
  last = len(noise_levels.levels) - 1
  for i, (s, t) in enumerate(noise_levels.steps()):
    time = s.time * options.timestep_scaling
    skip = SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2)
    out = time / np.sqrt(time**2 + SIGMA_DATA**2)
    is_flow = noise_levels.schedule.is_flow
    clean = X0 if is_flow else out * X0 + skip * X
    yield row(
      s, t, x=clean if i == last else t.signal * clean + t.sigma * NOISE
    )


def tcd(noise_levels: NoiseLevels, eta: float = 0.3) -> Iterator[Row]:
  """Trajectory consistency distillation (Zheng et al. 2024, alg. 4).

  Steps along the trajectory down to the time (1 - eta) t, and adds noise to
  return to t; eta is their gamma, in [0, 1].
  """
  last = len(noise_levels.levels) - 1
  for i, (s, t) in enumerate(noise_levels.steps()):
    if i == last:
      yield row(s, t, x=t.signal * X0 + t.sigma * EPS)
      continue
    low = noise_levels.schedule.level_at(np.floor((1 - eta) * t.time))
    kept = t.signal / low.signal
    down = low.signal * X0 + low.sigma * EPS
    yield row(s, t, x=kept * down + np.sqrt(max(1 - kept**2, 0)) * NOISE)


def invert(noise_levels: NoiseLevels, is_ahead: bool = False) -> Iterator[Row]:
  """DDIM inversion: from an image to the noise that it came from.

  Euler's method for the same ODE with time rising (Song et al. 2021, section
  4.3): x_s = sqrt(ab_s) x0 + sqrt(1 - ab_s) eps, estimated at x_t.

  Args:
    is_ahead: give the network the time at the end of a step and not at its
      start, as diffusers does.
  """
  for s, t in reversed(noise_levels.steps()):
    time = s.time if is_ahead else np.maximum(t.time, 0.0)
    level = t._replace(time=time)  # a clean image has no time of its own
    yield row(level, s, x=s.signal * X0 + s.sigma * EPS)
