"""Samplers that ask twice per step: Heun's method and the midpoint's.

They solve dx/dr = eps for x / signal, r being sigma / signal (Karras et al.
2022, eq. 4 in Song et al.'s variables). The last step to the image is Euler's,
and so is the first one from pure noise: r is beyond all measure there, and so
would be what an error of the second answer does.
"""

from collections.abc import Iterator

import numpy as np

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


def heun(grid: NoiseLevels) -> Iterator[Row]:
  """Heun's method (Karras et al. 2022, algorithm 1), order 2.

  Asks at s, steps to t, asks there, and steps again with the mean of both.
  """
  for s, t in grid.steps():
    if t.sigma == 0 or s.is_noise:
      yield euler(s, t)
      continue
    yield euler(s, t, a=X0, b=EPS)  # x_s / signal_s = x0 + r_s eps = A + r_s B
    mean = (t.ratio - s.ratio) / 2 * (B + EPS)
    yield row(t, t, x=t.signal * (A + s.ratio * B + mean))


def dpm2(grid: NoiseLevels) -> Iterator[Row]:
  """The midpoint method, the middle being the geometric one; order 2.

  k-diffusion's sample_dpm_2, after Karras et al. 2022.
  """
  yield from _midpoint(grid, eta=0.0)


def dpm2_ancestral(grid: NoiseLevels, eta: float = 1.0) -> Iterator[Row]:
  """dpm2 to less noise than asked for, and noise to make up for it.

  k-diffusion's sample_dpm_2_ancestral; `eta` scales the noise that is added.
  """
  yield from _midpoint(grid, eta)


def _midpoint(grid: NoiseLevels, eta: float) -> Iterator[Row]:
  for s, t in grid.steps():
    down, up = descent(s, t, eta)
    if down == 0:
      yield row(s, t, x=t.signal * (X0 + up * NOISE))
      continue
    if s.is_noise:
      yield row(s, t, x=t.signal * (X0 + down * EPS + up * NOISE))
      continue
    middle = grid.halfway(np.sqrt(s.ratio * down))
    yield euler(s, middle, a=X0, b=EPS)
    whole = A + s.ratio * B + (down - s.ratio) * EPS
    yield row(middle, t, x=t.signal * (whole + up * NOISE))


def descent(s: Level, t: Level, eta: float) -> tuple[float, float]:
  """Ratios to step down to, and of the noise to add; their squares sum to t's.

  With eta 1 the noise is what q(x_s | x_t, x_0) leaves open.
  """
  high, low = s.ratio, t.ratio
  up = min(eta * low * np.sqrt(max(high**2 - low**2, 0)) / high, low)
  return np.sqrt(max(low**2 - up**2, 0)), up
