"""The noise levels of diffusers 0.42, with its roundings and deviations.

The same weights, the same noise and `compat="diffusers"` give diffusers' image.
What differs from this package's own noise levels:

  ddim, plms         a step ends at t - T // n whatever the spacing, which is
                     the next timestep only for "leading"
  leading            steps of T // n, so the first times are left out; n + 1
                     parts for the samplers in lambda, without the last time
  euler ... dpm2     x_T is scaled to the first sigma, except for "leading";
                     karras spacing keeps the ends of the base spacing
  dpmpp, deis, unipc the network is given rounded or truncated times
  deis               ends at the schedule's first time
"""

from typing import NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers.timesteps import (
  BY_RATIO,
  NoiseLevels,
  TimestepSpacing,
  spaced_ratios,
  spaced_times,
)
from ldm_jax.diffusion.schedule import (
  CLEAN_TIME,
  MIN_ALPHA_BAR,
  Level,
  Schedule,
)

# Samplers by the variable in which diffusers writes them.
IN_ALPHA = ("ddim", "ddpm", "plms", "pndm_prk")
IN_SIGMA = ("euler", "euler_ancestral", "heun", "lms", "dpm2", "dpm2_ancestral")
IN_LAMBDA = (
  "dpmpp_2m",
  "dpmpp_2m_sde",
  "dpmpp_2s",
  "dpmpp_3s",
  "deis",
  "unipc",
  "unipc_bh1",
)
DISTILLED = ("lcm", "tcd")
SPACINGS = (
  "leading",
  "trailing",
  "linspace",
  "karras",
  "exponential",
  "beta",
)


class DiffusersTimesteps(NamedTuple):
  """The options of a diffusers scheduler; see `SamplerConfig`."""

  sampler: str
  steps: int
  timestep_spacing: TimestepSpacing
  base_spacing: TimestepSpacing
  steps_offset: int
  final_time: float | int

  def noise_levels(self, schedule: Schedule) -> NoiseLevels:
    """The levels at which diffusers evaluates the network.

    Raises:
      ValueError: diffusers has no such sampler or spacing.
    """
    sampler, timestep_spacing = self.sampler, self.timestep_spacing
    if sampler in DISTILLED:
      return _distilled(self, schedule)
    if sampler not in (*IN_ALPHA, *IN_SIGMA, *IN_LAMBDA):
      raise ValueError(f'diffusers has no {sampler}; leave out "compat"')
    if timestep_spacing not in SPACINGS or (
      sampler in IN_ALPHA and timestep_spacing in BY_RATIO
    ):
      raise ValueError(
        f"diffusers' {sampler} has no timestep spacing {timestep_spacing!r}"
      )
    if not 1 <= self.steps <= schedule.steps:
      spaced_times(self.steps, "leading", schedule.steps)  # raises
    if sampler in IN_ALPHA:
      return _in_alpha(self, schedule)
    if sampler in IN_SIGMA:
      return _in_sigma(self, schedule)
    return _in_lambda(self, schedule)


def default_spacing(sampler: str) -> TimestepSpacing:
  """diffusers' default of `timestep_spacing`."""
  return "leading" if sampler in IN_ALPHA else "linspace"


def _times(
  options: DiffusersTimesteps,
  schedule: Schedule,
  timestep_spacing: TimestepSpacing,
  parts: int,
) -> np.ndarray:
  """Whole times, except for "linspace"; `parts` is n, or n + 1."""
  total, steps = schedule.steps, options.steps
  if timestep_spacing == "linspace":
    times = np.linspace(0, total - 1, parts)[::-1][:steps]  # of 1: the image
  elif timestep_spacing == "trailing":
    times = np.round(total - np.arange(steps) * total / steps) - 1
  else:
    rising = np.arange(parts) * (total // parts) + options.steps_offset
    times = rising[::-1][:steps].astype(np.float64)
  if times[0] >= total:
    raise ValueError(
      f"diffusers cannot take {steps} steps of {timestep_spacing!r}: its first "
      f"time is {times[0]:.0f}; try fewer, or leave compat out"
    )
  return times


def _in_alpha(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """DDIM, DDPM and PNDM: whole times, and ends of steps by subtraction."""
  times = np.round(
    _times(options, schedule, options.timestep_spacing, options.steps)
  )
  levels = [schedule.level_at(t) for t in times]
  last = schedule.level_at(options.final_time)
  if options.sampler == "ddpm":
    next_levels = [*levels[1:], schedule.level_at(CLEAN_TIME)]
  else:
    earlier = times - schedule.steps // options.steps
    next_levels = [schedule.level_at(t) if t >= 0 else last for t in earlier]
  return NoiseLevels(schedule, levels, next_levels)


def _sigma_table(schedule: Schedule) -> np.ndarray:
  """sigma / signal of every time."""
  levels = [schedule.level_at(t, MIN_ALPHA_BAR) for t in range(schedule.steps)]
  return np.array([level.ratio for level in levels])


def _level(time: float, ratio: float) -> Level:
  signal = 1 / np.sqrt(1 + np.square(ratio))
  return Level(np.float64(time), signal, ratio * signal)


def _in_sigma(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """k-diffusion's samplers: times between whole ones, scaled noise."""
  table = _sigma_table(schedule)
  sampler, timestep_spacing = options.sampler, options.timestep_spacing
  is_by_ratio = timestep_spacing in BY_RATIO
  base = options.base_spacing if is_by_ratio else timestep_spacing
  times = _times(options, schedule, base, options.steps)
  sigmas = np.interp(times, np.arange(len(table)), table)
  if is_by_ratio:
    sigmas = spaced_ratios(
      options.steps, timestep_spacing, sigmas[0], sigmas[-1]
    )
    times = _times_of(sigmas, table)
    if sampler.startswith("dpm2") and timestep_spacing == "karras":
      times = np.round(times)
  levels = [_level(*each) for each in zip(times, sigmas, strict=True)]
  return NoiseLevels(
    schedule,
    levels,
    [*levels[1:], schedule.level_at(CLEAN_TIME)],
    init_noise_sigma=1.0 if base == "leading" else float(levels[0].sigma),
    level_between=lambda r: _level(_times_of(np.array([r]), table)[0], r),
  )


def _times_of(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Times of sigmas, by interpolating ln sigma."""
  return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _in_lambda(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """DPM-Solver, DEIS and UniPC: whole times, even where sigmas are not."""
  table, timestep_spacing = _sigma_table(schedule), options.timestep_spacing
  if timestep_spacing in BY_RATIO:
    sigmas = spaced_ratios(options.steps, timestep_spacing, table[-1], table[0])
    times = _times_of(sigmas, table)
    if timestep_spacing == "karras" and schedule.kind != "cosine":
      times = np.round(times)
    else:
      times = np.floor(np.maximum(times - 1e-6, 0))  # as logarithms round there
  else:
    times = np.round(
      _times(options, schedule, timestep_spacing, options.steps + 1)
    )
    sigmas = table[times.astype(int)]
  levels = [_level(*each) for each in zip(times, sigmas, strict=True)]
  final_time = 0.0 if options.sampler == "deis" else options.final_time
  last = schedule.level_at(final_time)
  if final_time == 0 and timestep_spacing in BY_RATIO:
    last = levels[-1]  # the last step changes nothing
  return NoiseLevels(schedule, levels, [*levels[1:], last])


def _distilled(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """LCM as in this package; TCD ends at the schedule's first time."""
  times = spaced_times(options.steps, "lcm", schedule.steps)
  levels = [schedule.level_at(t) for t in times]
  last = schedule.level_at(0.0 if options.sampler == "tcd" else CLEAN_TIME)
  return NoiseLevels(schedule, levels, [*levels[1:], last])
