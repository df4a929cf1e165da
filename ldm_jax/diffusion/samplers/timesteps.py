"""Timestep spacings: the decreasing noise levels at which a sampler steps."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from ldm_jax.diffusion.samplers.solver_options import SolverOptions
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
  "lu",
  "beta",
  "beta_sigmas",
  "kl_optimal",
  "ddim_uniform",
  "lcm",
]
SPACINGS = get_args(TimestepSpacing)
RHO = 7.0  # of Karras et al. 2022, table 1
FEW_STEPS = 15  # with fewer steps, the last ones are of lower order
LCM_STEPS = 50  # of the timesteps that consistency models are distilled on


@dataclasses.dataclass(frozen=True)
class NoiseLevels:
  """Noise levels decreasing from noise to image.

  Attributes:
    levels: where each step starts, and where the network is evaluated.
    next_levels: where each step ends; next_levels[i] is levels[i + 1], except
      where diffusers' deviations are repeated.
    init_noise_sigma: x_T is unit noise times this.
    level_between: the level of a ratio sigma / signal, for methods that
      evaluate the network within a step; None is the schedule's own.
    skipped: how many first steps are left out because an image is given.
    stride: what diffusers' PNDM subtracts from a time to step, if it is not
      the difference of two times.
  """

  schedule: Schedule
  levels: Sequence[Level]
  next_levels: Sequence[Level]
  init_noise_sigma: float = 1.0
  level_between: Callable[[float], Level] | None = None
  skipped: int = 0
  stride: int | None = None

  def last_steps(self, strength: float) -> "NoiseLevels":
    """The last fraction `strength` of the steps.

    Raises:
      ValueError: no step is left.
    """
    count = len(self.levels)
    kept = min(int(count * strength), count)
    if kept < 1:
      raise ValueError(
        f"strength {strength} of {count} steps leaves none; give more steps, "
        f"or a strength of {1 / count:.2g} or more"
      )
    skipped = count - kept
    return dataclasses.replace(
      self,
      levels=self.levels[skipped:],
      next_levels=self.next_levels[skipped:],
      skipped=self.skipped + skipped,
    )

  def order(
    self, i: int, max_order: int, options: SolverOptions = SolverOptions()
  ) -> int:
    """The order of step i of a multistep method.

    At most i + 1, for so many estimates are known. The last step to the image
    itself must be of order 1, because the logarithm of its SNR is infinite;
    with few steps the orders fall to 1 in any case, as in DPM-Solver's code
    (`lower_order_final`).
    """
    left = len(self.levels) - i
    is_few = len(self.levels) + self.skipped < FEW_STEPS
    if options.lower_order_final and is_few:
      return min(max_order, i + 1, left)
    is_euler = self.ends_clean or options.euler_at_final
    return 1 if is_euler and left == 1 else min(max_order, i + 1)

  def steps(self) -> list[tuple[Level, Level]]:
    """(from, to) of every step."""
    return list(zip(self.levels, self.next_levels, strict=True))

  def level_of_ratio(self, ratio: float) -> Level:
    """The level of a ratio sigma / signal within a step."""
    return (self.level_between or self.schedule.level_of_ratio)(ratio)

  @property
  def ends_clean(self) -> bool:
    """Whether the last step ends at the image, where ln(SNR) is infinite."""
    return bool(self.next_levels[-1].sigma == 0)


def spaced_times(
  steps: int,
  timestep_spacing: TimestepSpacing,
  total: int = 1000,
  lcm_steps: int = LCM_STEPS,
) -> np.ndarray:
  """`steps` decreasing times in [0, total), float64.

  "leading" is LDM's "uniform" (50 of 1000: 981, 961, ..., 1), here evenly
  spaced for every number of steps; the original is so for divisors of the total
  only, and fails for 599. "quadratic" is LDM's "quad": dense near the image,
  starting at 0.8 of the schedule. "trailing" starts at total - 1 (Lin et al.
  2023, table 2); "linspace" includes both ends, "sgm_uniform" all but the last
  of one step more, neither rounded. "simple" is trailing, rounded down. "lcm"
  takes every k-th of the `lcm_steps` times that consistency models are
  distilled on. ComfyUI's "beta" are the quantiles of Beta(0.6, 0.6) (Lee et al.
  2024), fewer times where some are equal; its "ddim_uniform" are those from 1
  by total // steps, which may be more.

  Raises:
    ValueError: unless 1 <= steps <= total, or `lcm_steps` for "lcm".
  """
  most, kind = total, "noise schedule"
  if timestep_spacing == "lcm":
    most, kind = min(lcm_steps, total), "distillation's timesteps"
  if not 1 <= steps <= most:
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
  if timestep_spacing == "beta":
    return _beta_times(steps, total)
  if timestep_spacing == "ddim_uniform":
    return np.arange(1, total, max(total // steps, 1))[::-1].astype(np.float64)
  if timestep_spacing == "lcm":
    trained = (np.arange(most, 0, -1) * (total // most) - 1).astype(np.float64)
    return trained[count * most // steps]
  rising = count * total // steps
  offset = min(1, total - 1 - rising[-1])  # LDM's +1, unless it leaves [0, T)
  return (rising + offset)[::-1].astype(np.float64)


def _quadratic(steps: int, total: int) -> np.ndarray:
  """LDM's make_ddim_timesteps; unrounded where rounding would repeat a time."""
  ends = np.sqrt(0.8 * total)
  rising = (np.linspace(0, ends, steps) if steps > 1 else np.array([ends])) ** 2
  whole = np.floor(rising)
  rising = whole if np.all(np.diff(whole) > 0) else rising
  return np.minimum(rising + 1, total - 1)[::-1]


def _beta_times(steps: int, total: int) -> np.ndarray:
  """Each of ComfyUI's times once."""
  from scipy.special import betaincinv  # slow to import, for this alone

  fraction = betaincinv(0.6, 0.6, 1 - np.arange(steps) / steps)
  times = np.rint(fraction * (total - 1))
  return times[np.diff(times, prepend=total) < 0]


def spaced_ratios(
  steps: int, timestep_spacing: TimestepSpacing, highest: float, lowest: float
) -> np.ndarray:
  """`steps` decreasing sigma / signal from `highest` to `lowest`.

  "karras": even in its seventh root (Karras et al. 2022, eq. 5);
  "exponential" and "lu": in its logarithm; "beta_sigmas": at the quantiles of
  Beta(0.6, 0.6) (Lee et al. 2024), as in A1111's web UI and diffusers;
  "kl_optimal": in its arctangent (Sabour et al. 2024).
  """
  fraction = np.linspace(0, 1, steps)
  if timestep_spacing == "karras":
    high, low = highest ** (1 / RHO), lowest ** (1 / RHO)
    return (high + fraction * (low - high)) ** RHO
  if timestep_spacing in ("exponential", "lu"):
    return np.exp(np.linspace(np.log(highest), np.log(lowest), steps))
  if timestep_spacing == "kl_optimal":
    high, low = np.arctan(highest), np.arctan(lowest)
    return np.tan((1 - fraction) * high + fraction * low)
  from scipy.special import betaincinv  # slow to import, for this alone

  return lowest + betaincinv(0.6, 0.6, 1 - fraction) * (highest - lowest)


BY_RATIO = ("karras", "exponential", "lu", "beta_sigmas", "kl_optimal")


def noise_levels(
  schedule: Schedule,
  steps: int,
  timestep_spacing: TimestepSpacing,
  final_time: float | int = CLEAN_TIME,
  least: float = 0.0,
  lcm_steps: int = LCM_STEPS,
) -> NoiseLevels:
  """The levels of a spacing, from the schedule's noisiest time to `final_time`.

  Args:
    final_time: the time at which the last step ends.
    least: see `Schedule.level_at`.
    lcm_steps: see `spaced_times`.

  Raises:
    ValueError: the spacing cannot have so many steps.
  """
  if timestep_spacing in BY_RATIO:
    spaced_times(steps, "linspace", schedule.steps)  # checks the number
    ends = [
      schedule.level_at(t, MIN_ALPHA_BAR) for t in (schedule.steps - 1, 0)
    ]
    ratios = spaced_ratios(
      steps, timestep_spacing, *(level.ratio for level in ends)
    )
    return levels_at_ratios(schedule, ratios, final_time)
  times = spaced_times(steps, timestep_spacing, schedule.steps, lcm_steps)
  return levels_at_times(schedule, times, final_time, least)


def levels_at_times(
  schedule: Schedule,
  times: np.ndarray | Sequence[float | int],
  final_time: float | int = CLEAN_TIME,
  least: float = 0.0,
) -> NoiseLevels:
  """The levels of the given times.

  Raises:
    ValueError: unless they decrease, within the schedule.
  """
  times = np.asarray(times, np.float64)
  last = CLEAN_TIME + 1 / schedule.steps if schedule.is_flow else 0
  is_within = times.size and last <= times[-1] <= times[0] < schedule.steps
  if not (is_within and np.all(np.diff(times) < 0)):
    raise ValueError(
      f"times must decrease, from at most {schedule.steps - 1} to at least "
      f"{last:g}, got {times.tolist()}"
    )
  levels = [schedule.level_at(t, least) for t in times]
  if len(levels) and times[-1] <= final_time:
    final_time = CLEAN_TIME  # the last level is there already
  return _chain(schedule, levels, final_time)


def levels_at_ratios(
  schedule: Schedule,
  ratios: np.ndarray | Sequence[float | int],
  final_time: float | int = CLEAN_TIME,
) -> NoiseLevels:
  """The levels of the given sigma / signal, without a final 0.

  Raises:
    ValueError: unless they decrease, and are finite and above 0.
  """
  ratios = np.asarray(ratios, np.float64)
  if ratios.size == 0 or not (
    np.all(np.isfinite(ratios))
    and ratios[-1] > 0
    and np.all(np.diff(ratios) < 0)
  ):
    raise ValueError(
      f"sigmas must be finite, above 0 and decreasing, got {ratios.tolist()}"
    )
  levels = [schedule.level_of_ratio(ratio) for ratio in ratios]
  if levels[-1].sigma <= schedule.level_at(final_time).sigma:
    final_time = CLEAN_TIME
  return _chain(schedule, levels, final_time)


def _chain(
  schedule: Schedule, levels: list[Level], final_time: float
) -> NoiseLevels:
  """Each step ends where the next one starts."""
  return NoiseLevels(
    schedule, levels, [*levels[1:], schedule.level_at(final_time)]
  )
