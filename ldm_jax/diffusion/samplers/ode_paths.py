"""The variables in which the probability flow ODE is solved.

x = scale y and dy/du = slope, with y = x0 + u slope at every level.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers.sampler_table import EPS, X0
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels
from ldm_jax.diffusion.schedule import Level


class OdePath(NamedTuple):
  """Variables of the ODE.

  Attributes:
    scale: of x at a level.
    clock: u of a level.
    slope: dy/du over the basis of a `Row`.
  """

  scale: Callable[[Level], float]
  clock: Callable[[Level], float]
  slope: np.ndarray


# x / signal = x0 + r eps, r = sigma / signal  (Karras et al. 2022, eq. 4).
RATIO_PATH = OdePath(lambda level: level.signal, lambda level: level.ratio, EPS)
# z = x0 + s (eps - x0), the straight line  (Liu et al. 2023, eq. 1).
FLOW_PATH = OdePath(
  lambda level: level.signal + level.sigma,
  lambda level: level.flow_time,
  EPS - X0,
)


def path_of(noise_levels: NoiseLevels) -> OdePath:
  """The straight line of a rectified flow; ratios of all other schedules."""
  return FLOW_PATH if noise_levels.schedule.is_flow else RATIO_PATH
