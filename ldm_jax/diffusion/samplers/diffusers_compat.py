"""The noise levels of diffusers 0.42, with its roundings and deviations.

The same weights, the same noise and `compat="diffusers"` give diffusers' image.
What differs from this package's own noise levels:

  ddim, plms         a step ends at t - T // n whatever the spacing, which is
                     the next timestep only for "leading"
  trailing           falls by T / n in floating point, and is then rounded
  leading            steps of T // n, so the first times are left out; n + 1
                     parts for the samplers in lambda, without the last time
  euler ... dpm2     x_T is scaled to the first sigma, except for "leading";
                     karras spacing keeps the ends of the base spacing
  dpmpp, deis, unipc the network is given rounded or truncated times
  deis               ends at the schedule's first time
  euler              does not scale a result that still has noise
  heun ... pndm_prk  ignore a zero terminal SNR, see `IGNORES_ZERO_SNR`
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers.solver_options import SolverOptions
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
  "unipc_bh2",
)
DISTILLED = ("lcm", "tcd")
_BY_TIME = ("leading", "trailing", "linspace")
_BY_SIGMA = ("karras", "exponential", "beta_sigmas")
# Their classes have no rescale_betas_zero_snr.
IGNORES_ZERO_SNR = (
  "plms",
  "pndm_prk",
  "heun",
  "lms",
  "dpm2",
  "dpm2_ancestral",
  "dpmpp_2s",
  "dpmpp_3s",
  "deis",
)


class DiffusersTimesteps(NamedTuple):
  """The options of a diffusers scheduler; see `SamplerConfig`."""

  sampler: str
  steps: int
  timestep_spacing: TimestepSpacing
  base_spacing: TimestepSpacing
  steps_offset: int
  final_time: float | int
  options: SolverOptions

  def noise_levels(self, schedule: Schedule) -> NoiseLevels:
    """The levels at which diffusers evaluates the network.

    Raises:
      ValueError: diffusers has no such sampler or spacing, or fails.
    """
    sampler = self.sampler
    if sampler not in (*IN_ALPHA, *IN_SIGMA, *IN_LAMBDA, *DISTILLED):
      raise ValueError(f'diffusers has no {sampler}; leave out "compat"')
    if sampler in IGNORES_ZERO_SNR:
      schedule = dataclasses.replace(schedule, zero_terminal_snr=False)
    if sampler in DISTILLED:
      return _distilled(self, schedule)
    known = diffusers_spacings(sampler)
    if self.timestep_spacing not in known:
      raise ValueError(
        f"diffusers' {sampler} has no timestep spacing "
        f"{self.timestep_spacing!r}; it has {', '.join(known)}"
      )
    if not 1 <= self.steps <= schedule.steps:
      spaced_times(self.steps, "leading", schedule.steps)  # raises
    if sampler in IN_ALPHA:
      return _in_alpha(self, schedule)
    if sampler in IN_SIGMA:
      return _in_sigma(self, schedule)
    return _in_lambda(self, schedule)


def diffusers_spacings(sampler: str) -> tuple[str, ...]:
  """Those that diffusers has for a sampler; none if it has no such sampler."""
  if sampler not in (*IN_ALPHA, *IN_SIGMA, *IN_LAMBDA):
    return ()
  if sampler in (*IN_ALPHA, "euler_ancestral"):
    return _BY_TIME
  if sampler in ("dpmpp_2s", "dpmpp_3s"):
    return ("linspace", *_BY_SIGMA)
  if sampler in ("dpmpp_2m", "dpmpp_2m_sde"):
    return (*_BY_TIME, *_BY_SIGMA, "lu")
  return (*_BY_TIME, *_BY_SIGMA)


def default_final_time(sampler: str) -> float:
  """diffusers' default end: PNDM's alone is not the image."""
  return 0.0 if sampler in ("plms", "pndm_prk") else CLEAN_TIME


def default_spacing(sampler: str) -> TimestepSpacing:
  """diffusers' default of `timestep_spacing`."""
  return "leading" if sampler in IN_ALPHA else "linspace"


def base_times(
  options: DiffusersTimesteps,
  schedule: Schedule,
  timestep_spacing: TimestepSpacing,
  parts: int,
  last: int | None = None,
) -> np.ndarray:
  """Whole times, except for "linspace".

  Args:
    parts: n, or n + 1.
    last: the times are below this; None is the schedule's length.
  """
  total, steps = schedule.steps, options.steps
  last = last or total
  if timestep_spacing == "linspace":
    times = np.linspace(0, last - 1, parts)[::-1][:steps]  # of 1: the image
  elif timestep_spacing == "trailing":
    times = np.arange(last, 0, -total / steps).round() - 1
  else:
    rising = np.arange(parts) * (last // parts) + options.steps_offset
    times = rising[::-1][:steps].astype(np.float64)
  if times[0] >= total:
    raise ValueError(
      f"diffusers cannot take {steps} steps of {timestep_spacing!r}: its first "
      f"time is {times[0]:.0f}; try fewer, or leave compat out"
    )
  if times[-1] < 0:
    raise ValueError(
      f"diffusers takes {steps + 1} steps for {steps} of 'trailing', by "
      f"rounding, and the last one at time -1, which no schedule has; try "
      f"{steps - 1} or {steps + 1} steps, or leave compat out"
    )
  return times


def _in_alpha(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """DDIM, DDPM and PNDM: whole times, and ends of steps by subtraction."""
  times = np.round(
    base_times(options, schedule, options.timestep_spacing, options.steps)
  )
  levels = [schedule.level_at(t) for t in times]
  last = schedule.level_at(options.final_time)
  if options.sampler == "ddpm":
    next_levels = [*levels[1:], schedule.level_at(CLEAN_TIME)]
  else:
    earlier = times - schedule.steps // options.steps
    next_levels = [schedule.level_at(t) if t >= 0 else last for t in earlier]
  is_pndm = options.sampler in ("plms", "pndm_prk")
  stride = schedule.steps // options.steps if is_pndm else None
  return NoiseLevels(schedule, levels, next_levels, stride=stride)


@functools.lru_cache(maxsize=8)
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
  times = base_times(options, schedule, base, options.steps)
  sigmas = np.interp(times, np.arange(len(table)), table)
  last = schedule.level_at(CLEAN_TIME)
  unscaled = Level(np.float64(0), np.float64(1), table[0])  # x0 + sigma eps
  if sampler == "euler" and options.final_time == 0:
    last = unscaled
  if options.options.interpolation_type == "log_linear":
    ends = table[-1], table[0]
    sigmas = spaced_ratios(options.steps + 1, "exponential", *ends)
    if not is_by_ratio:
      sigmas, last = sigmas[:-1], unscaled
  if is_by_ratio:
    high, low = _ends(options, sigmas[0], sigmas[-1])
    sigmas = spaced_ratios(options.steps, timestep_spacing, high, low)
    times = _times_of(sigmas, table)
    if sampler.startswith("dpm2") and timestep_spacing == "karras":
      times = np.round(times)
  levels = [_level(*each) for each in zip(times, sigmas, strict=True)]
  return NoiseLevels(
    schedule,
    levels,
    [*levels[1:], last],
    init_noise_sigma=1.0 if base == "leading" else float(levels[0].sigma),
    level_between=lambda r: _level(_times_of(np.array([r]), table)[0], r),
  )


def _ends(
  options: DiffusersTimesteps, high: float, low: float
) -> tuple[float, float]:
  """The ends of a spacing in sigma; LMS has no others with karras."""
  sampler, given = options.sampler, options.options
  if (sampler, options.timestep_spacing) == ("lms", "karras"):
    return high, low
  return given.sigma_max or high, given.sigma_min or low


def _times_of(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Times of sigmas, by interpolating ln sigma."""
  return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _in_lambda(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """DPM-Solver, DEIS and UniPC: whole times, even where sigmas are not."""
  table, timestep_spacing = _sigma_table(schedule), options.timestep_spacing
  if timestep_spacing in BY_RATIO:
    ends = table[-1], table[0]
    if timestep_spacing != "lu":
      ends = _ends(options, *ends)
    sigmas = spaced_ratios(options.steps, timestep_spacing, *ends)
    times = _whole(options, schedule, _times_of(sigmas, table))
  else:
    last = _first_unclipped(options, table)
    parts = options.steps + 1
    times = np.round(
      base_times(options, schedule, timestep_spacing, parts, last)
    )
    sigmas = table[times.astype(int)]
  levels = [_level(*each) for each in zip(times, sigmas, strict=True)]
  final_time = 0.0 if options.sampler == "deis" else options.final_time
  end = schedule.level_at(final_time)
  ends_there = np.isclose(levels[-1].ratio, table[0])
  if options.sampler.startswith("unipc") or options.sampler == "deis":
    ends_there = True  # even where `sigma_min` is another
  if final_time == 0 and timestep_spacing in BY_RATIO and ends_there:
    end = levels[-1]  # the last step changes nothing
  return NoiseLevels(schedule, levels, [*levels[1:], end])


def _whole(
  options: DiffusersTimesteps, schedule: Schedule, times: np.ndarray
) -> np.ndarray:
  """Rounded for karras and lu, except by multistep DPM-Solver with cosine."""
  is_multistep = options.sampler in ("dpmpp_2m", "dpmpp_2m_sde")
  is_round = options.timestep_spacing in ("karras", "lu")
  if is_round and not (is_multistep and schedule.kind == "cosine"):
    return np.round(times)
  return np.floor(np.maximum(times - 1e-6, 0))  # as logarithms round there


def _first_unclipped(options: DiffusersTimesteps, table: np.ndarray) -> int:
  """The number of times whose lambda is at least `lambda_min_clipped`."""
  least = options.options.lambda_min_clipped
  if least is None:
    return len(table)
  return len(table) - int(np.searchsorted(-np.log(table[::-1]), least))


def _distilled(options: DiffusersTimesteps, schedule: Schedule) -> NoiseLevels:
  """LCM as in this package; TCD ends at the schedule's first time."""
  most = options.options.original_inference_steps
  times = spaced_times(options.steps, "lcm", schedule.steps, most)
  levels = [schedule.level_at(t) for t in times]
  last = schedule.level_at(0.0 if options.sampler == "tcd" else CLEAN_TIME)
  return NoiseLevels(schedule, levels, [*levels[1:], last])
