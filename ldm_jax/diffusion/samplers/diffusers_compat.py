"""The grids of diffusers 0.42, with its roundings and its mistakes.

Same weights, same noise and `compat="diffusers"` give diffusers' picture. What
differs from our own grids:

  ddim, plms         a step lands at t - T // n whatever the spacing, which is
                     the next time of the grid only for "leading"
  leading            steps of T // n, so the first times stay out; n + 1 parts
                     for the lambda samplers, whose last time is left out
  euler ... dpm2     x_T is scaled to the first sigma, but for "leading"; the
                     ends of karras grids are those of the spacing beneath
  dpmpp, deis, unipc the network is told rounded or truncated times
  deis               stops at the schedule's first time
"""

from typing import TYPE_CHECKING

import numpy as np

from ldm_jax.diffusion.samplers.timesteps import (
  BY_RATIO,
  NoiseLevels,
  ratios,
  times,
)
from ldm_jax.diffusion.schedule import (
  CLEAN_TIME,
  MIN_ALPHA_BAR,
  Level,
  Schedule,
)

if TYPE_CHECKING:
  from ldm_jax.diffusion.samplers.sampler_config import SamplerConfig

ALPHA = ("ddim", "ddpm", "plms", "pndm_prk")
SIGMA = ("euler", "euler_ancestral", "heun", "lms", "dpm2", "dpm2_ancestral")
DISTILLED = ("lcm", "tcd")


def diffusers_timesteps(
  schedule: Schedule, sampler_config: "SamplerConfig"
) -> NoiseLevels:
  """The grid diffusers has for a recipe.

  Raises:
    ValueError: it has none.
  """
  default = "leading" if sampler_config.sampler in ALPHA else "linspace"
  timestep_spacing = sampler_config.timestep_spacing or default
  if sampler_config.times or sampler_config.sigmas:
    raise ValueError(
      'times and sigmas are taken as they are; leave compat="diffusers" out'
    )
  if sampler_config.sampler in DISTILLED:
    return _distilled(schedule, sampler_config)
  named = ("leading", "trailing", "linspace", "karras", "exponential", "beta")
  if timestep_spacing not in named or (
    sampler_config.sampler in ALPHA and timestep_spacing in BY_RATIO
  ):
    raise ValueError(
      f"diffusers' {sampler_config.sampler} has no grid {timestep_spacing!r}"
    )
  if not 1 <= sampler_config.steps <= schedule.steps:
    times(sampler_config.steps, "leading", schedule.steps)
  if sampler_config.sampler in ALPHA:
    return _alpha(schedule, sampler_config, timestep_spacing)
  if sampler_config.sampler in SIGMA:
    return _sigma(schedule, sampler_config, timestep_spacing)
  return _lambda(schedule, sampler_config, timestep_spacing)


def _times(schedule, sampler_config, timestep_spacing, parts):
  """Whole times but for "linspace"; `parts` is n, or n + 1."""
  total, steps = schedule.steps, sampler_config.steps
  if timestep_spacing == "linspace":
    found = np.linspace(0, total - 1, parts)[::-1][:steps]  # of 1: the image
  elif timestep_spacing == "trailing":
    found = np.round(total - np.arange(steps) * total / steps) - 1
  else:
    rising = np.arange(parts) * (total // parts) + sampler_config.steps_offset
    found = rising[::-1][:steps].astype(np.float64)
  if found[0] >= total:
    raise ValueError(
      f"diffusers cannot take {steps} steps of {timestep_spacing!r}: its first "
      f"time is {found[0]:.0f}; try fewer, or leave compat out"
    )
  return found


def _alpha(schedule, sampler_config, timestep_spacing):
  """DDIM, DDPM and PNDM: whole times, landings by subtraction."""
  found = np.round(
    _times(schedule, sampler_config, timestep_spacing, sampler_config.steps)
  )
  levels = [schedule.level_at(t) for t in found]
  last = schedule.level_at(sampler_config.final_sigma)
  if sampler_config.sampler == "ddpm":
    reached = [*levels[1:], schedule.level_at(CLEAN_TIME)]
  else:
    below = found - schedule.steps // sampler_config.steps
    reached = [schedule.level_at(t) if t >= 0 else last for t in below]
  return NoiseLevels(schedule, levels, reached)


def _table(schedule):
  """sigma / signal of every time."""
  levels = [schedule.level_at(t, MIN_ALPHA_BAR) for t in range(schedule.steps)]
  return np.array([level.ratio for level in levels])


def _level(time: float, ratio: float) -> Level:
  signal = 1 / np.sqrt(1 + np.square(ratio))
  return Level(np.float64(time), signal, ratio * signal)


def _sigma(schedule, sampler_config, timestep_spacing):
  """The samplers after k-diffusion: times between whole ones, scaled noise."""
  table = _table(schedule)
  base_spacing = sampler_config.base_spacing or "linspace"
  base = base_spacing if timestep_spacing in BY_RATIO else timestep_spacing
  found = _times(schedule, sampler_config, base, sampler_config.steps)
  sigmas = np.interp(found, np.arange(len(table)), table)
  if timestep_spacing in BY_RATIO:
    sigmas = ratios(
      sampler_config.steps, timestep_spacing, sigmas[0], sigmas[-1]
    )
    found = _times_of(sigmas, table)
    if (
      sampler_config.sampler.startswith("dpm2") and timestep_spacing == "karras"
    ):
      found = np.round(found)
  levels = [_level(*each) for each in zip(found, sigmas, strict=True)]
  return NoiseLevels(
    schedule,
    levels,
    [*levels[1:], schedule.level_at(CLEAN_TIME)],
    init_noise_sigma=1.0 if base == "leading" else float(levels[0].sigma),
    between=lambda r: _level(_times_of(np.array([r]), table)[0], r),
  )


def _times_of(sigmas, table):
  """By interpolating ln sigma."""
  return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _lambda(schedule, sampler_config, timestep_spacing):
  """DPM-Solver, DEIS and UniPC: whole times, also where sigmas are not."""
  table = _table(schedule)
  if timestep_spacing in BY_RATIO:
    sigmas = ratios(sampler_config.steps, timestep_spacing, table[-1], table[0])
    found = _times_of(sigmas, table)
    if timestep_spacing == "karras" and schedule.kind != "cosine":
      found = np.round(found)
    else:
      found = np.floor(np.maximum(found - 1e-6, 0))  # as logarithms round there
  else:
    found = np.round(
      _times(
        schedule, sampler_config, timestep_spacing, sampler_config.steps + 1
      )
    )
    sigmas = table[found.astype(int)]
  levels = [_level(*each) for each in zip(found, sigmas, strict=True)]
  final_sigma = (
    0.0 if sampler_config.sampler == "deis" else sampler_config.final_sigma
  )
  last = schedule.level_at(final_sigma)
  if final_sigma == 0 and timestep_spacing in BY_RATIO:
    last = levels[-1]  # the last step stands still
  return NoiseLevels(schedule, levels, [*levels[1:], last])


def _distilled(schedule, sampler_config):
  """LCM as ours; TCD stops at the schedule's first time."""
  found = times(sampler_config.steps, "lcm", schedule.steps)
  levels = [schedule.level_at(t) for t in found]
  last = schedule.level_at(
    0.0 if sampler_config.sampler == "tcd" else CLEAN_TIME
  )
  return NoiseLevels(schedule, levels, [*levels[1:], last])
