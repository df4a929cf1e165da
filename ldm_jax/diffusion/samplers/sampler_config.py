"""Which sampler, at which noise levels: `SamplerConfig`, and its table."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers import ddim_and_ddpm, timesteps
from ldm_jax.diffusion.samplers.diffusers_compat import (
  DiffusersTimesteps,
  default_final_time,
  default_spacing,
  diffusers_spacings,
)
from ldm_jax.diffusion.samplers.flow_levels import (
  check_diffusers_has,
  check_options,
  flow_times,
  levels_at_flow_times,
)
from ldm_jax.diffusion.samplers.registry import (
  Sampler,
  SamplerSpec,
  as_spec,
  check_values,
)
from ldm_jax.diffusion.samplers.sampler_table import Row, stack
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import (
  SPACINGS,
  NoiseLevels,
  TimestepSpacing,
)
from ldm_jax.diffusion.schedule import CLEAN_TIME, MIN_ALPHA_BAR, Schedule
from ldm_jax.diffusion.shift import SizedShift, check_shift


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How to go from noise to an image. Changing a field compiles nothing.

  Attributes:
    steps: how many; some samplers evaluate the network twice in each.
    sampler: a name of `SAMPLERS`, or a sampler itself; see `Sampler`.
    timestep_spacing: of the steps; None is the sampler's default.
    eta: scale of the noise that is added; None is the sampler's default.
    order: of multistep samplers; None is the sampler's default.
    final_time: where samplers end that may stop before the image; time 0
      leaves the schedule's first noise in, as Stable Diffusion's do, -1 is the
      image.
    times: decreasing times in place of steps and spacing.
    sigmas: the same as decreasing ratios sigma / signal; of a rectified flow
      as times s in (0, 1], which are not shifted.
    compat: "diffusers" reproduces diffusers' timesteps, rounding and
      deviations; see diffusers_compat.py.
    steps_offset: of "leading" in diffusers.
    base_spacing: of diffusers' karras, exponential and beta spacings, the
      spacing whose ends they keep; None is linspace.
    options: what else a scheduler's config may choose.
    shift: of a rectified flow, moves its times towards noise: a number, or by
      the size of the latents; see diffusion/shift.py.
    shift_terminal: of a rectified flow, the last time s before the image.

  Raises:
    ValueError: at construction, if the sampler does not exist, has no such
      option, or an option is out of range.
  """

  steps: int = 50
  sampler: str | SamplerSpec | Sampler = "ddim"
  timestep_spacing: TimestepSpacing | None = None
  eta: float | int | None = None
  order: int | None = None
  final_time: float | int = CLEAN_TIME
  times: tuple[float | int, ...] = ()
  sigmas: tuple[float | int, ...] = ()
  compat: Literal["diffusers"] | None = None
  steps_offset: int = 1
  base_spacing: TimestepSpacing | None = None
  options: SolverOptions = SolverOptions()
  shift: float | int | SizedShift = 1.0
  shift_terminal: float | int | None = None

  def __post_init__(self):
    spec, name = self.spec, self.sampler_name
    check_shift(self.shift, self.shift_terminal)
    if self.times and self.sigmas:
      raise ValueError("give times or sigmas, not both")
    self._check_words()
    check_values(spec, name, self._options, self.options)

  def _check_words(self) -> None:
    """Refuses a spacing or a compat that there is not."""
    for key in ("timestep_spacing", "base_spacing"):
      spacing = getattr(self, key)
      if spacing is not None and spacing not in SPACINGS:
        raise ValueError(
          f"{key} must be one of {', '.join(SPACINGS)}, got {spacing!r}"
        )
    if self.compat not in (None, "diffusers"):
      raise ValueError(f"compat must be diffusers or None, got {self.compat!r}")

  @property
  def spec(self) -> SamplerSpec:
    """The sampler with its defaults and limits."""
    return as_spec(self.sampler)

  @property
  def sampler_name(self) -> str:
    """The sampler's name; of a function that has none here, its own."""
    if isinstance(self.sampler, str):
      return self.sampler
    return getattr(self.spec.rows, "__name__", type(self.spec.rows).__name__)

  @property
  def _options(self) -> dict[str, float | int]:
    """Those that are set."""
    options = {"eta": self.eta, "order": self.order}
    return {name: value for name, value in options.items() if value is not None}

  @property
  def is_random(self) -> bool:
    """Whether noise is added at some steps."""
    default = self.spec.default("eta")
    if default is None:
      return self.spec.adds_noise
    return (default if self.eta is None else self.eta) > 0

  def noise_levels(
    self, schedule: Schedule, latent_size: tuple[int, int] | None = None
  ) -> NoiseLevels:
    """The levels at which the network is evaluated.

    Args:
      latent_size: height and width of the latents, for a shift by size.

    Raises:
      ValueError: the schedule has no such levels.
    """
    spec = self.spec
    if schedule.is_flow:
      return self._flow_levels(schedule, latent_size)
    if self.shift != 1 or self.shift_terminal is not None:
      raise ValueError(
        f"shift is of rectified flows; the schedule is {schedule.kind!r}"
      )
    if self.compat == "diffusers":
      return self._diffusers_timesteps().noise_levels(schedule)
    final_time = self.final_time if spec.may_stop_early else CLEAN_TIME
    if self.sigmas:
      return timesteps.levels_at_ratios(schedule, self.sigmas, final_time)
    least = MIN_ALPHA_BAR if spec.divides_by_signal else 0.0
    if self.times:
      return timesteps.levels_at_times(schedule, self.times, final_time, least)
    timestep_spacing = self.timestep_spacing or spec.timestep_spacing
    return timesteps.noise_levels(
      schedule,
      self.steps,
      timestep_spacing,
      final_time,
      least,
      self.options.original_inference_steps,
    )

  def _flow_levels(
    self, schedule: Schedule, latent_size: tuple[int, int] | None
  ) -> NoiseLevels:
    spec = self.spec
    if self.compat == "diffusers":
      check_diffusers_has(self.sampler_name)
    check_options(self.options)
    final_time = self.final_time if spec.may_stop_early else CLEAN_TIME
    divides = spec.divides_by_signal and not spec.follows_flow
    ends = final_time, MIN_ALPHA_BAR if divides else 0.0
    if self.times:
      return timesteps.levels_at_times(schedule, self.times, *ends)
    times = self.sigmas or flow_times(
      self.steps,
      self.timestep_spacing or spec.timestep_spacing,
      self.shift,
      self.shift_terminal,
      schedule.steps,
      self.base_spacing or "linspace",
      self.options.original_inference_steps,
      latent_size,
    )
    return levels_at_flow_times(schedule, times, *ends)

  def _diffusers_timesteps(self) -> DiffusersTimesteps:
    if self.times or self.sigmas:
      raise ValueError(
        'times and sigmas are taken as they are; leave compat="diffusers" out'
      )
    name, spacing = self.sampler_name, self.timestep_spacing
    if spacing == "beta":
      spacing = "beta_sigmas"  # diffusers has no other
    return DiffusersTimesteps(
      sampler=name,
      steps=self.steps,
      timestep_spacing=spacing or default_spacing(name),
      base_spacing=self.base_spacing or "linspace",
      steps_offset=self.steps_offset,
      final_time=self.final_time,
      options=self.options,
    )

  def from_config(self, sampler: str | Sampler) -> "SamplerConfig":
    """Another sampler with this one's spacing and end, as diffusers'
    `from_config` makes it: a spacing that it has not there is not kept, nor an
    end that is of another kind of sampler.
    """
    other = SamplerConfig(self.steps, sampler)
    known = diffusers_spacings(other.sampler_name)
    base = self.base_spacing if self.base_spacing in known else None
    spacing = self.timestep_spacing
    final_time = default_final_time(other.sampler_name)
    if self.spec.may_stop_early == other.spec.may_stop_early:
      final_time = self.final_time
    return dataclasses.replace(
      other,
      timestep_spacing=spacing if spacing in known else base,
      base_spacing=base,
      final_time=final_time,
      steps_offset=self.steps_offset,
      shift=self.shift,
      shift_terminal=self.shift_terminal,
    )

  def plan(
    self,
    schedule: Schedule,
    strength: float = 1.0,
    latent_size: tuple[int, int] | None = None,
  ) -> "Plan":
    """The table to follow, and the scale of x_T.

    Args:
      strength: the fraction of the steps that is taken, the last ones; a given
        image is noised to the first level of these.
      latent_size: height and width of the latents, for a shift by size.

    Raises:
      ValueError: the schedule has no such levels, or no step is left.
    """
    return _plan(self, schedule, strength, latent_size)

  def inversion(
    self, schedule: Schedule, latent_size: tuple[int, int] | None = None
  ) -> "Plan":
    """From an image to the noise it came from; see `ddim_and_ddpm.invert`.

    Raises:
      ValueError: the schedule has no such levels.
    """
    is_ahead = self.compat == "diffusers"
    levels = self.noise_levels(schedule, latent_size)
    rows = ddim_and_ddpm.invert(levels, is_ahead)
    return Plan(stack(list(rows)), 1.0)


class Plan(NamedTuple):
  """A `SamplerConfig` computed for a schedule.

  Attributes:
    table: a `Row` of all rows; `run` follows it.
    init_noise_sigma: x_T is unit noise times this.
  """

  table: Row
  init_noise_sigma: float


@functools.lru_cache(maxsize=64)
def _plan(
  config: SamplerConfig,
  schedule: Schedule,
  strength: float,
  latent_size: tuple[int, int] | None,
) -> Plan:
  levels = config.noise_levels(schedule, latent_size).last_steps(strength)
  keywords: dict[str, Any] = dict(config._options)
  if config.spec.default("options") is not None:
    keywords["options"] = config.options
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    rows = list(config.spec.rows(levels, **keywords))
  if not rows:
    raise ValueError(f"sampler {config.sampler_name!r} made no rows")
  # A known image ends as itself, even where a sampler stops early.
  rows[-1] = rows[-1]._replace(next_level=schedule.level_at(CLEAN_TIME))
  return Plan(stack(rows), levels.init_noise_sigma)
