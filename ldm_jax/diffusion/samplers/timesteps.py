"""Where a sampler asks the network: a falling grid of noise levels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ldm_jax.diffusion.schedule import (
  CLEAN_TIME,
  MIN_ALPHA_BAR,
  Level,
  Schedule,
)

TimestepSpacing = Literal[
  "leading",
  "trailing",
  "linspace",
  "quadratic",
  "sgm_uniform",
  "simple",
  "karras",
  "exponential",
  "beta",
  "kl_optimal",
  "lcm",
]
RHO = 7.0  # of Karras et al. 2022, table 1
SHORT = 15  # grids with fewer steps end with lower orders
LCM_STEPS = 50  # of the grid that consistency models are distilled on


@dataclasses.dataclass(frozen=True)
class NoiseLevels:
  """Levels falling from noise to image.

  Attributes:
    levels: where the network is asked, one per step.
    next_levels: where each step lands; next_levels[i] is levels[i + 1] wherever
      nobody else's mistakes are being repeated.
    init_noise_sigma: x_T is unit noise times this.
    between: the level of a ratio sigma / signal, for methods that ask there.
    left_out: steps before the first, which an image given makes needless.
  """

  schedule: Schedule
  levels: Sequence[Level]
  next_levels: Sequence[Level]
  init_noise_sigma: float = 1.0
  between: Callable[[float], Level] | None = None
  left_out: int = 0

  def last(self, strength: float) -> "NoiseLevels":
    """The last share of the grid.

    Raises:
      ValueError: not one step is left.
    """
    count = len(self.levels)
    kept = min(int(count * strength), count)
    if kept < 1:
      raise ValueError(
        f"strength {strength} of {count} steps leaves none; give more steps, "
        f"or a strength of {1 / count:.2g} or more"
      )
    gone = count - kept
    return dataclasses.replace(
      self,
      levels=self.levels[gone:],
      next_levels=self.next_levels[gone:],
      left_out=self.left_out + gone,
    )

  def order(self, i: int, most: int) -> int:
    """The order of step i of a method that remembers.

    What it remembers allows no more than i + 1. The last step to the image
    itself must be of order 1, for the logarithm of its SNR is infinite; on
    short grids the orders fall to 1 in any case, as in DPM-Solver's code
    (`lower_order_final`).
    """
    left = len(self.levels) - i
    if len(self.levels) + self.left_out < SHORT:
      return min(most, i + 1, left)
    return 1 if self.is_clean and left == 1 else min(most, i + 1)

  def steps(self) -> list[tuple[Level, Level]]:
    """(from, to) of every step."""
    return list(zip(self.levels, self.next_levels, strict=True))

  def halfway(self, ratio: float) -> Level:
    """The level of a ratio that is not on the grid."""
    return (self.between or self.schedule.level_of_ratio)(ratio)

  @property
  def is_clean(self) -> bool:
    """Whether it ends at the image itself, where ln(SNR) is infinite."""
    return bool(self.next_levels[-1].sigma == 0)


def times(
  steps: int, timestep_spacing: TimestepSpacing, total: int = 1000
) -> np.ndarray:
  """`steps` falling times in [0, total), float64.

  "leading" is LDM's uniform grid (50 of 1000: 981, 961, ..., 1), here spread
  evenly for every number of steps, which the original is only for divisors
  and cannot do at all for 599 of them. "quadratic" is LDM's too: dense near
  the image, beginning at 0.8 of the schedule. "trailing" starts at total - 1
  (Lin et al. 2023, table 2); "linspace" includes both ends, "sgm_uniform" all
  but the last of one step more, neither rounded. "simple" is trailing, rounded
  down. "lcm" takes every so manieth of the 50 times that consistency models
  are distilled on.

  Raises:
    ValueError: unless 1 <= steps <= total, or 50 for "lcm".
  """
  most = min(LCM_STEPS, total) if timestep_spacing == "lcm" else total
  if not 1 <= steps <= most:
    kind = (
      "distillation's grid" if timestep_spacing == "lcm" else "noise schedule"
    )
    raise ValueError(
      f"steps must be between 1 and {most} (the length of the {kind}), got "
      f"{steps}"
    )
  count = np.arange(steps)
  if timestep_spacing == "linspace":
    return np.linspace(total - 1, 0, steps)
  if timestep_spacing == "sgm_uniform":
    return np.linspace(total - 1, 0, steps, endpoint=False)
  if timestep_spacing == "trailing":
    return np.round(total - count * total / steps) - 1
  if timestep_spacing == "simple":
    return (total - 1 - count * total // steps).astype(np.float64)
  if timestep_spacing == "quadratic":
    return _quadratic(steps, total)
  if timestep_spacing == "lcm":
    trained = (np.arange(most, 0, -1) * (total // most) - 1).astype(np.float64)
    return trained[count * most // steps]
  rising = count * total // steps
  offset = min(1, total - 1 - rising[-1])  # LDM's +1, where there is room
  return (rising + offset)[::-1].astype(np.float64)


def _quadratic(steps: int, total: int) -> np.ndarray:
  """LDM's make_ddim_timesteps; unrounded where rounding would repeat a time."""
  ends = np.sqrt(0.8 * total)
  rising = (np.linspace(0, ends, steps) if steps > 1 else np.array([ends])) ** 2
  whole = np.floor(rising)
  rising = whole if np.all(np.diff(whole) > 0) else rising
  return np.minimum(rising + 1, total - 1)[::-1]


def ratios(
  steps: int, timestep_spacing: TimestepSpacing, highest: float, lowest: float
) -> np.ndarray:
  """`steps` falling sigma / signal from `highest` to `lowest`.

  "karras": even in its seventh root (Karras et al. 2022, eq. 5);
  "exponential": in its logarithm; "beta": at the quantiles of Beta(0.6, 0.6)
  (Lee et al. 2024); "kl_optimal": in its arctangent (Sabour et al. 2024).
  """
  share = np.linspace(0, 1, steps)
  if timestep_spacing == "karras":
    high, low = highest ** (1 / RHO), lowest ** (1 / RHO)
    return (high + share * (low - high)) ** RHO
  if timestep_spacing == "exponential":
    return np.exp(np.linspace(np.log(highest), np.log(lowest), steps))
  if timestep_spacing == "kl_optimal":
    return np.tan((1 - share) * np.arctan(highest) + share * np.arctan(lowest))
  from scipy.special import betaincinv

  return lowest + betaincinv(0.6, 0.6, 1 - share) * (highest - lowest)


BY_RATIO = ("karras", "exponential", "beta", "kl_optimal")


def noise_levels(
  schedule: Schedule,
  steps: int,
  timestep_spacing: TimestepSpacing,
  final_sigma: float | int = CLEAN_TIME,
  least: float = 0.0,
) -> NoiseLevels:
  """The grid of a spacing, from the schedule's noisiest time to `final_sigma`.

  Args:
    landing: the time of the last step's result.
    least: see `Schedule.level_at`.

  Raises:
    ValueError: it cannot have so many steps.
  """
  if timestep_spacing in BY_RATIO:
    times(steps, "linspace", schedule.steps)  # refuses impossible numbers
    ends = [
      schedule.level_at(t, MIN_ALPHA_BAR) for t in (schedule.steps - 1, 0)
    ]
    found = ratios(steps, timestep_spacing, *(level.ratio for level in ends))
    return of_ratios(schedule, found, final_sigma)
  found = times(steps, timestep_spacing, schedule.steps)
  return of_times(schedule, found, final_sigma, least)


def of_times(
  schedule: Schedule,
  found: np.ndarray | Sequence[float | int],
  final_sigma: float | int = CLEAN_TIME,
  least: float = 0.0,
) -> NoiseLevels:
  """A grid through the times that are given.

  Raises:
    ValueError: unless they fall, within the schedule.
  """
  found = np.asarray(found, np.float64)
  if found.size == 0 or not (
    found[-1] >= 0 and found[0] < schedule.steps and np.all(np.diff(found) < 0)
  ):
    raise ValueError(
      f"times must fall, from at most {schedule.steps - 1} to at least 0, got "
      f"{found.tolist()}"
    )
  levels = [schedule.level_at(t, least) for t in found]
  if len(levels) and found[-1] <= final_sigma:
    final_sigma = CLEAN_TIME  # the grid is there already
  return _chain(schedule, levels, final_sigma)


def of_ratios(
  schedule: Schedule,
  found: np.ndarray | Sequence[float | int],
  final_sigma: float | int = CLEAN_TIME,
) -> NoiseLevels:
  """A grid through sigma / signal as given, without the 0 at its end.

  Raises:
    ValueError: unless they fall, and are finite and above 0.
  """
  found = np.asarray(found, np.float64)
  if found.size == 0 or not (
    np.all(np.isfinite(found)) and found[-1] > 0 and np.all(np.diff(found) < 0)
  ):
    raise ValueError(
      f"sigmas must be finite, above 0 and fall, got {found.tolist()}"
    )
  levels = [schedule.level_of_ratio(ratio) for ratio in found]
  if levels[-1].sigma <= schedule.level_at(final_sigma).sigma:
    final_sigma = CLEAN_TIME
  return _chain(schedule, levels, final_sigma)


def _chain(
  schedule: Schedule, levels: list[Level], final_sigma: float
) -> NoiseLevels:
  """Each step lands where the next one begins."""
  return NoiseLevels(
    schedule, levels, [*levels[1:], schedule.level_at(final_sigma)]
  )
