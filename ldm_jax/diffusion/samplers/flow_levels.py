"""The noise levels at which flows are sampled: times s, shifted.

s falls from 1, pure noise, and a level's time is t = T s - 1, whole or not. So
the network of a schedule of T = 1000 steps is given 1000 s exactly.
"""

from collections.abc import Sequence

import numpy as np

from ldm_jax.diffusion.samplers.solver_options import (
  WITH_COMPAT,
  SolverOptions,
)
from ldm_jax.diffusion.samplers.timesteps import (
  BY_RATIO,
  NoiseLevels,
  TimestepSpacing,
  spaced_ratios,
  spaced_times,
)
from ldm_jax.diffusion.schedule import CLEAN_TIME, Schedule
from ldm_jax.diffusion.shift import Shift, resolved_shift, shift_time

# Those that diffusers has for flows: FlowMatchEulerDiscreteScheduler, the same
# with stochastic_sampling, and FlowMatchHeunDiscreteScheduler.
FLOW_SAMPLERS = ("euler", "lcm", "heun")


def check_diffusers_has(sampler: str) -> None:
  """Raises ValueError for a sampler without a scheduler of flows there."""
  if sampler not in FLOW_SAMPLERS:
    raise ValueError(
      f"diffusers' schedulers of flows are {', '.join(FLOW_SAMPLERS)}, not "
      f"{sampler}; leave compat out"
    )


def check_options(options: SolverOptions) -> None:
  """Raises ValueError for options of levels that flows have not."""
  for name in WITH_COMPAT:
    if name in options.changed:
      raise ValueError(f"{name} is not of flow models; leave it out")


def flow_times(
  steps: int,
  timestep_spacing: TimestepSpacing,
  shift: Shift = 1.0,
  terminal: float | None = None,
  total: int = 1000,
  base_spacing: TimestepSpacing = "linspace",
  lcm_steps: int = 50,
  latent_size: tuple[int, int] | None = None,
) -> np.ndarray:
  """`steps` decreasing times s, float64, from 1 and without the final 0.

  "trailing" are 1, 1 - 1/n, ..., 1/n before the shift, as in FLUX's pipeline;
  "linspace" ends at the schedule's first time, which a fixed shift has shifted
  before, as in SD3's code and diffusers, so that it is shifted twice. Karras,
  exponential, beta and kl_optimal spacings are of s itself, between the ends of
  the shifted `base_spacing`; others are the whole times of `spaced_times`.

  Args:
    terminal: 1 - s is scaled so that the last time is this, or None.
    total: T of the schedule.
    latent_size: height and width of the latents, for a shift by size.

  Raises:
    ValueError: the spacing cannot have so many steps, or is not of flows.
  """
  if timestep_spacing == "lu":
    raise ValueError(
      "timestep spacing 'lu' is even in ln(signal / sigma), which is infinite "
      "where a flow begins; use exponential, which is even in ln s"
    )
  is_of_s = timestep_spacing in BY_RATIO
  spacing = base_spacing if is_of_s else timestep_spacing
  whole = spaced_times(steps, spacing, total, lcm_steps)  # checks the number
  factor = resolved_shift(shift, latent_size)
  if spacing == "trailing":
    times = np.linspace(1, 1 / steps, steps)
  elif spacing == "linspace":
    is_fixed = isinstance(shift, float | int)
    last = shift_time(1 / total, factor) if is_fixed else 1 / total
    times = np.linspace(1, last, steps)
  else:
    times = (whole + 1) / total
  times = shift_time(times, factor)
  if terminal is not None:
    times = stretch_to(times, terminal)
  if is_of_s:
    ends = times[0], times[-1]
    times = np.minimum(spaced_ratios(steps, timestep_spacing, *ends), times[0])
  return times


def stretch_to(times: np.ndarray, terminal: float) -> np.ndarray:
  """1 - s scaled, so that the last of several times is `terminal`.

  LTX-Video's; one time alone is 1 and stays there.
  """
  if len(times) == 1:
    return times
  return 1 - (1 - times) * (1 - terminal) / (1 - times[-1])


def levels_at_flow_times(
  schedule: Schedule,
  times: np.ndarray | Sequence[float | int],
  final_time: float | int = CLEAN_TIME,
  least: float = 0.0,
) -> NoiseLevels:
  """The levels of given times s.

  Args:
    final_time: t at which the last step ends.
    least: see `Schedule.level_at`.

  Raises:
    ValueError: unless they decrease, above 0 and at most 1.
  """
  times = np.asarray(times, np.float64)
  if times.size == 0 or not (
    times[-1] > 0 and times[0] <= 1 and np.all(np.diff(times) < 0)
  ):
    raise ValueError(
      "a flow's sigmas must decrease, from at most 1 to above 0, got "
      f"{times.tolist()}"
    )
  inner = schedule.steps * times - 1
  levels = [schedule.level_at(t, least) for t in inner]
  end = CLEAN_TIME if inner[-1] <= final_time else final_time
  return NoiseLevels(
    schedule, levels, [*levels[1:], schedule.level_at(end, least)]
  )
