"""Every sampler by its name, and how one is asked for."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers import (
  dpm_solver,
  multistep,
  one_step,
  timesteps,
  two_stage,
  unipc,
)
from ldm_jax.diffusion.samplers.diffusers_compat import diffusers_timesteps
from ldm_jax.diffusion.samplers.sampler_table import Row, stack
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels, TimestepSpacing
from ldm_jax.diffusion.schedule import CLEAN_TIME, MIN_ALPHA_BAR, Schedule


class Method(NamedTuple):
  """A sampler, and what it is used with unless something else is asked for.

  Attributes:
    rows: of a grid; its own `eta` and `order` are the defaults.
    spacing: of its grid.
    divides: whether it divides by the signal, which must not be 0 then.
    stops: whether it may stop at the schedule's first time, as Stable
      Diffusion's samplers of this kind do, rather than at the image.
  """

  rows: Callable[..., Iterator[Row]]
  timestep_spacing: TimestepSpacing = "trailing"
  divides: bool = True
  stops: bool = False


def _euler_ancestral(grid: NoiseLevels, eta: float = 1.0) -> Iterator[Row]:
  return one_step.ddim(grid, eta)


def _euler(grid: NoiseLevels) -> Iterator[Row]:
  return one_step.ddim(grid)


def _unipc_bh1(grid: NoiseLevels, order: int = 2) -> Iterator[Row]:
  return unipc.unipc(grid, order, is_bh2=False)


def _unipc(grid: NoiseLevels, order: int = 2) -> Iterator[Row]:
  return unipc.unipc(grid, order)


SAMPLERS: dict[str, Method] = {
  "ddim": Method(one_step.ddim, "leading", divides=False, stops=True),
  "ddpm": Method(one_step.ddpm, "leading", divides=False),
  "plms": Method(multistep.plms, "leading", stops=True),
  "pndm_prk": Method(multistep.pndm_prk, "leading", stops=True),
  "euler": Method(_euler),
  "euler_ancestral": Method(_euler_ancestral),
  "heun": Method(two_stage.heun),
  "lms": Method(multistep.lms),
  "dpm2": Method(two_stage.dpm2),
  "dpm2_ancestral": Method(two_stage.dpm2_ancestral),
  "dpmpp_2m": Method(dpm_solver.dpmpp_2m),
  "dpmpp_2m_sde": Method(dpm_solver.dpmpp_2m_sde),
  "dpmpp_2s": Method(dpm_solver.dpmpp_2s),
  "dpmpp_3s": Method(dpm_solver.dpmpp_3s),
  "deis": Method(multistep.deis),
  "unipc": Method(_unipc),
  "unipc_bh1": Method(_unipc_bh1),
  "lcm": Method(one_step.lcm, "lcm", divides=False),
  "tcd": Method(one_step.tcd, "lcm", divides=False),
}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How to go from noise to an image. All of it is data: nothing compiles.

  Attributes:
    steps: of the grid; some samplers ask the network twice in each.
    sampler: a key of `SAMPLERS`.
    spacing: of the grid; None is the sampler's own.
    eta: scale of the noise that is added; None is the sampler's own.
    order: of multistep samplers; None is the sampler's own.
    landing: where samplers end that may stop before the image: the time 0
      leaves the schedule's first noise in, as Stable Diffusion's do.
    times: the grid itself, falling, in place of steps and spacing.
    sigmas: the same as ratios sigma / signal.
    compat: "diffusers" repeats diffusers' grids, roundings and mistakes; see
      `like_diffusers`.
    steps_offset: of "leading" in diffusers.
    beneath: of diffusers' karras, exponential and beta grids, the spacing
      whose ends they keep; None is linspace.
  """

  steps: int = 50
  sampler: str = "ddim"
  timestep_spacing: TimestepSpacing | None = None
  eta: float | int | None = None
  order: int | None = None
  final_sigma: float | int = CLEAN_TIME
  times: tuple[float | int, ...] = ()
  sigmas: tuple[float | int, ...] = ()
  compat: Literal["diffusers"] | None = None
  steps_offset: int = 1
  base_spacing: TimestepSpacing | None = None

  def __post_init__(self):
    if self.sampler not in SAMPLERS:
      raise ValueError(
        f"no sampler is called {self.sampler!r}; there are "
        f"{', '.join(SAMPLERS)}"
      )
    if self.times and self.sigmas:
      raise ValueError("give times or sigmas, not both")
    takes = inspect.signature(self.method.rows).parameters
    for name in ("eta", "order"):
      if getattr(self, name) is not None and name not in takes:
        others = [
          key
          for key, method in SAMPLERS.items()
          if name in inspect.signature(method.rows).parameters
        ]
        raise ValueError(
          f"sampler {self.sampler!r} has no {name}; {', '.join(others)} have"
        )
    if self.eta is not None and not 0 <= self.eta < np.inf:
      raise ValueError(f"eta must be 0 or more, got {self.eta}")
    if self.eta is not None and self.sampler == "tcd" and self.eta > 1:
      raise ValueError(f"eta of tcd must be 0 to 1, got {self.eta}")
    if self.order is not None and not 1 <= self.order <= self._most_order:
      raise ValueError(
        f"order of {self.sampler} must be 1 to {self._most_order}, got "
        f"{self.order}"
      )

  @property
  def _most_order(self) -> int:
    return 4 if self.sampler == "lms" else 3

  @property
  def method(self) -> Method:
    """The sampler and what belongs to it."""
    return SAMPLERS[self.sampler]

  @property
  def is_random(self) -> bool:
    """Whether it adds noise on the way."""
    default = inspect.signature(self.method.rows).parameters.get("eta")
    if default is None:
      return self.sampler == "lcm"
    return (default.default if self.eta is None else self.eta) > 0

  def noise_levels(self, schedule: Schedule) -> NoiseLevels:
    """The levels it asks at.

    Raises:
      ValueError: the schedule has no such grid.
    """
    if self.compat == "diffusers":
      return diffusers_timesteps(schedule, self)
    final_sigma = self.final_sigma if self.method.stops else CLEAN_TIME
    if self.sigmas:
      return timesteps.of_ratios(schedule, self.sigmas, final_sigma)
    least = MIN_ALPHA_BAR if self.method.divides else 0.0
    if self.times:
      return timesteps.of_times(schedule, self.times, final_sigma, least)
    timestep_spacing = self.timestep_spacing or self.method.timestep_spacing
    return timesteps.noise_levels(
      schedule, self.steps, timestep_spacing, final_sigma, least
    )

  def plan(self, schedule: Schedule, strength: float = 1.0) -> "Plan":
    """The rows to follow, and what x_T is.

    Args:
      strength: the share of the steps that is taken, the last ones: an image
        given is noised to the first level of these.

    Raises:
      ValueError: the schedule has no such grid, or no step is left.
    """
    return _plan(self, schedule, strength)

  def inversion(self, schedule: Schedule) -> "Plan":
    """The way back, from an image to noise; see `one_step.invert`.

    Raises:
      ValueError: the schedule has no such grid.
    """
    is_ahead = self.compat == "diffusers"
    rows = one_step.invert(self.noise_levels(schedule), is_ahead)
    return Plan(stack(list(rows)), 1.0)


class Plan(NamedTuple):
  """A recipe worked out for a schedule.

  Attributes:
    table: its rows.
    init_noise_sigma: x_T is unit noise times this.
  """

  table: Row
  init_noise_sigma: float


@functools.lru_cache(maxsize=64)
def _plan(
  sampler_config: SamplerConfig, schedule: Schedule, strength: float
) -> Plan:
  grid = sampler_config.noise_levels(schedule).last(strength)
  told = {"eta": sampler_config.eta, "order": sampler_config.order}
  told = {name: value for name, value in told.items() if value is not None}
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    rows = list(sampler_config.method.rows(grid, **told))
  # A picture that is kept ends as itself, also where samplers stop early.
  rows[-1] = rows[-1]._replace(next_level=schedule.level_at(CLEAN_TIME))
  return Plan(stack(rows), grid.init_noise_sigma)
