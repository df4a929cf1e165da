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

from ldm_jax.diffusion.samplers.grids import BY_RATIO, Grid, ratios, times
from ldm_jax.diffusion.schedule import CLEAN, LEAST, Level, Schedule

if TYPE_CHECKING:
  from ldm_jax.diffusion.samplers.recipe import Recipe

ALPHA = ("ddim", "ddpm", "plms", "pndm_prk")
SIGMA = ("euler", "euler_ancestral", "heun", "lms", "dpm2", "dpm2_ancestral")
DISTILLED = ("lcm", "tcd")


def like_diffusers(schedule: Schedule, recipe: "Recipe") -> Grid:
  """The grid diffusers has for a recipe.

  Raises:
    ValueError: it has none.
  """
  default = "leading" if recipe.sampler in ALPHA else "linspace"
  spacing = recipe.spacing or default
  if recipe.times or recipe.sigmas:
    raise ValueError(
      'times and sigmas are taken as they are; leave compat="diffusers" out'
    )
  if recipe.sampler in DISTILLED:
    return _distilled(schedule, recipe)
  named = ("leading", "trailing", "linspace", "karras", "exponential", "beta")
  if spacing not in named or (recipe.sampler in ALPHA and spacing in BY_RATIO):
    raise ValueError(f"diffusers' {recipe.sampler} has no grid {spacing!r}")
  if not 1 <= recipe.steps <= schedule.steps:
    times(recipe.steps, "leading", schedule.steps)
  if recipe.sampler in ALPHA:
    return _alpha(schedule, recipe, spacing)
  if recipe.sampler in SIGMA:
    return _sigma(schedule, recipe, spacing)
  return _lambda(schedule, recipe, spacing)


def _times(schedule, recipe, spacing, parts):
  """Whole times but for "linspace"; `parts` is n, or n + 1."""
  total, steps = schedule.steps, recipe.steps
  if spacing == "linspace":
    found = np.linspace(0, total - 1, parts)[::-1][:steps]  # of 1: the image
  elif spacing == "trailing":
    found = np.round(total - np.arange(steps) * total / steps) - 1
  else:
    rising = np.arange(parts) * (total // parts) + recipe.steps_offset
    found = rising[::-1][:steps].astype(np.float64)
  if found[0] >= total:
    raise ValueError(
      f"diffusers cannot take {steps} steps of {spacing!r}: its first time is "
      f"{found[0]:.0f}; try fewer, or leave compat out"
    )
  return found


def _alpha(schedule, recipe, spacing):
  """DDIM, DDPM and PNDM: whole times, landings by subtraction."""
  found = np.round(_times(schedule, recipe, spacing, recipe.steps))
  levels = [schedule.level_at(t) for t in found]
  last = schedule.level_at(recipe.landing)
  if recipe.sampler == "ddpm":
    reached = [*levels[1:], schedule.level_at(CLEAN)]
  else:
    below = found - schedule.steps // recipe.steps
    reached = [schedule.level_at(t) if t >= 0 else last for t in below]
  return Grid(schedule, levels, reached)


def _table(schedule):
  """sigma / signal of every time."""
  levels = [schedule.level_at(t, LEAST) for t in range(schedule.steps)]
  return np.array([level.ratio for level in levels])


def _level(time: float, ratio: float) -> Level:
  signal = 1 / np.sqrt(1 + np.square(ratio))
  return Level(np.float64(time), signal, ratio * signal)


def _sigma(schedule, recipe, spacing):
  """The samplers after k-diffusion: times between whole ones, scaled noise."""
  table = _table(schedule)
  beneath = recipe.beneath or "linspace"
  base = beneath if spacing in BY_RATIO else spacing
  found = _times(schedule, recipe, base, recipe.steps)
  sigmas = np.interp(found, np.arange(len(table)), table)
  if spacing in BY_RATIO:
    sigmas = ratios(recipe.steps, spacing, sigmas[0], sigmas[-1])
    found = _times_of(sigmas, table)
    if recipe.sampler.startswith("dpm2") and spacing == "karras":
      found = np.round(found)
  levels = [_level(*each) for each in zip(found, sigmas, strict=True)]
  return Grid(
    schedule,
    levels,
    [*levels[1:], schedule.level_at(CLEAN)],
    start=1.0 if base == "leading" else float(levels[0].sigma),
    between=lambda r: _level(_times_of(np.array([r]), table)[0], r),
  )


def _times_of(sigmas, table):
  """By interpolating ln sigma."""
  return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _lambda(schedule, recipe, spacing):
  """DPM-Solver, DEIS and UniPC: whole times, also where sigmas are not."""
  table = _table(schedule)
  if spacing in BY_RATIO:
    sigmas = ratios(recipe.steps, spacing, table[-1], table[0])
    found = _times_of(sigmas, table)
    if spacing == "karras" and schedule.kind != "cosine":
      found = np.round(found)
    else:
      found = np.floor(np.maximum(found - 1e-6, 0))  # as logarithms round there
  else:
    found = np.round(_times(schedule, recipe, spacing, recipe.steps + 1))
    sigmas = table[found.astype(int)]
  levels = [_level(*each) for each in zip(found, sigmas, strict=True)]
  landing = 0.0 if recipe.sampler == "deis" else recipe.landing
  last = schedule.level_at(landing)
  if landing == 0 and spacing in BY_RATIO:
    last = levels[-1]  # the last step stands still
  return Grid(schedule, levels, [*levels[1:], last])


def _distilled(schedule, recipe):
  """LCM as ours; TCD stops at the schedule's first time."""
  found = times(recipe.steps, "lcm", schedule.steps)
  levels = [schedule.level_at(t) for t in found]
  last = schedule.level_at(0.0 if recipe.sampler == "tcd" else CLEAN)
  return Grid(schedule, levels, [*levels[1:], last])
