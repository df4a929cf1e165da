"""Two evaluations per step: Heun's method and the midpoint method.

They solve dx/dr = eps for x / signal, r being sigma / signal (Karras et al.
2022, eq. 4 in Song et al.'s variables). The last step to the image is Euler's,
and so is the first one from pure noise: r has no bound there, and would
multiply the error of the second estimate.

On a rectified flow Heun's and the midpoint method solve dz/ds = eps - x0 for
z = (1 - s) x0 + s eps instead, which has no pole; see `ode_paths`.
"""

from collections.abc import Iterator

import numpy as np

from ldm_jax.diffusion.samplers.ode_paths import RATIO_PATH, path_of
from ldm_jax.diffusion.samplers.sampler_table import (
  EPS,
  NOISE,
  X0,
  A,
  B,
  Row,
  row,
)
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level


def euler(s: Level, t: Level, **kept: np.ndarray) -> Row:
  """x_t = signal_t x0 + sigma_t eps."""
  return row(s, t, x=t.signal * X0 + t.sigma * EPS, **kept)


def heun(noise_levels: NoiseLevels) -> Iterator[Row]:
  """Heun's method (Karras et al. 2022, algorithm 1), order 2.

  Steps to t with the slope at s, and again with the mean of the slopes at s
  and t.
  """
  path = path_of(noise_levels)
  for s, t in noise_levels.steps():
    if t.sigma == 0 or (s.is_noise and path is RATIO_PATH):
      yield euler(s, t)
      continue
    yield euler(s, t, a=X0, b=path.slope)  # y_s = x0 + u_s slope = A + u_s B
    mean = (path.clock(t) - path.clock(s)) / 2 * (B + path.slope)
    yield row(t, t, x=path.scale(t) * (A + path.clock(s) * B + mean))


def dpm2(noise_levels: NoiseLevels) -> Iterator[Row]:
  """The midpoint method with the geometric mean as midpoint, order 2.

  k-diffusion's sample_dpm_2, after Karras et al. 2022.
  """
  if noise_levels.schedule.is_flow:
    yield from _flow_midpoint(noise_levels)
    return
  yield from _midpoint(noise_levels, eta=0.0)


def dpm2_ancestral(
  noise_levels: NoiseLevels, eta: float = 1.0
) -> Iterator[Row]:
  """dpm2 to a lower noise level, and added noise up to the wanted one.

  k-diffusion's sample_dpm_2_ancestral; `eta` scales the noise that is added.
  """
  yield from _midpoint(noise_levels, eta)


def _midpoint(noise_levels: NoiseLevels, eta: float) -> Iterator[Row]:
  for s, t in noise_levels.steps():
    down, up = ancestral_step(s, t, eta)
    if down == 0:
      yield row(s, t, x=t.signal * (X0 + up * NOISE))
      continue
    if s.is_noise:
      yield row(s, t, x=t.signal * (X0 + down * EPS + up * NOISE))
      continue
    middle = noise_levels.level_of_ratio(np.sqrt(s.ratio * down))
    yield euler(s, middle, a=X0, b=EPS)
    whole = A + s.ratio * B + (down - s.ratio) * EPS
    yield row(middle, t, x=t.signal * (whole + up * NOISE))


def _flow_midpoint(noise_levels: NoiseLevels) -> Iterator[Row]:
  for s, t in noise_levels.steps():
    if t.sigma == 0:
      yield euler(s, t)
      continue
    begin, end = s.flow_time, t.flow_time
    at = np.sqrt(begin * end)
    middle = noise_levels.level_of_ratio(at / (1 - at))
    yield euler(s, middle, a=X0, b=EPS - X0)
    z = A + begin * B + (end - begin) * (EPS - X0)
    yield row(middle, t, x=(t.signal + t.sigma) * z)


def ancestral_step(s: Level, t: Level, eta: float) -> tuple[float, float]:
  """Ratios sigma / signal to step down to, and of the noise to add.

  Their squares sum to t's. k-diffusion's get_ancestral_step; with eta 1 the
  noise has the deviation of q(x_t | x_s, x_0).
  """
  high, low = s.ratio, t.ratio
  up = min(eta * low * np.sqrt(max(high**2 - low**2, 0)) / high, low)
  return np.sqrt(max(low**2 - up**2, 0)), up
