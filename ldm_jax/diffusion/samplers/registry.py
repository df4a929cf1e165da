"""Samplers by name, and the protocol of a sampler.

A sampler of your own needs no change here: pass the function itself,
`SamplerConfig(sampler=my_sampler)`, or give it a name with `register_sampler`.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ldm_jax.diffusion.samplers import (
  ddim_and_ddpm,
  dpm_solver,
  euler_and_heun,
  multistep,
  unipc,
)
from ldm_jax.diffusion.samplers.sampler_table import Row
from ldm_jax.diffusion.samplers.solver_options import DPM, ENDS, SolverOptions
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels, TimestepSpacing


@runtime_checkable
class Sampler(Protocol):
  """Noise levels to rows; each row evaluates the network once.

  For example Euler's method:

    def euler(noise_levels):
      for s, t in noise_levels.steps():
        yield row(s, t, x=t.signal * X0 + t.sigma * EPS)

  Options are its keyword parameters `eta` (scale of the noise it adds), `order`
  and `options` (a `SolverOptions`), which it may have or not; their defaults
  are the sampler's own.
  """

  def __call__(
    self, noise_levels: NoiseLevels, *args: Any, **options: Any
  ) -> Iterable[Row]:
    """The rows, from the first level to the last."""
    ...


class SamplerSpec(NamedTuple):
  """A sampler with its defaults and limits.

  Attributes:
    rows: the sampler.
    timestep_spacing: its default.
    divides_by_signal: whether it divides by the signal, which is then kept
      above 0 where a schedule ends at pure noise.
    may_stop_early: whether `SamplerConfig.final_time` applies to it, as to
      DDIM and PNDM of Stable Diffusion, which end at the schedule's first time
      and not at the image.
    adds_noise: whether it adds noise though it has no `eta`.
    max_eta: largest value of `eta`.
    max_order: largest value of `order`.
    options: the fields of `SolverOptions` that it obeys.
    follows_flow: whether on a rectified flow it solves dz/ds = eps - x0, which
      has no pole at pure noise.
  """

  rows: Sampler
  timestep_spacing: TimestepSpacing = "trailing"
  divides_by_signal: bool = True
  may_stop_early: bool = False
  adds_noise: bool = False
  max_eta: float = np.inf
  max_order: int = 3
  options: tuple[str, ...] = ()
  follows_flow: bool = False

  def default(self, option: str) -> Any:
    """The default of `eta`, `order` or `options`; None without the option.

    Raises:
      ValueError: the sampler's parameter has no default.
    """
    parameter = inspect.signature(self.rows).parameters.get(option)
    if parameter is None:
      return None
    if parameter.default is parameter.empty:
      raise ValueError(f"a sampler's {option} needs a default value")
    return parameter.default


def _euler(noise_levels: NoiseLevels) -> Iterable[Row]:
  return ddim_and_ddpm.ddim(noise_levels)


def _euler_ancestral(
  noise_levels: NoiseLevels, eta: float = 1.0
) -> Iterable[Row]:
  return ddim_and_ddpm.ddim(noise_levels, eta)


def _unipc(
  noise_levels: NoiseLevels,
  order: int = 2,
  options: SolverOptions = SolverOptions(),
) -> Iterable[Row]:
  return unipc.unipc(noise_levels, order, options=options)


def _unipc_bh1(
  noise_levels: NoiseLevels,
  order: int = 3,
  options: SolverOptions = SolverOptions(),
) -> Iterable[Row]:
  return unipc.unipc(noise_levels, order, is_bh2=False, options=options)


def _unipc_bh2(
  noise_levels: NoiseLevels,
  order: int = 3,
  options: SolverOptions = SolverOptions(),
) -> Iterable[Row]:
  return unipc.unipc(noise_levels, order, options=options)


_FINAL = "lower_order_final"
_MULTISTEP = (*DPM, "euler_at_final", "lambda_min_clipped")
_SINGLE_STEP = (*DPM, "lambda_min_clipped")
_UNIPC = ("predict_x0", _FINAL, "disable_corrector", *ENDS)
_TIMES = ("original_inference_steps",)

SAMPLERS: dict[str, SamplerSpec] = {
  "ddim": SamplerSpec(
    ddim_and_ddpm.ddim, "leading", divides_by_signal=False, may_stop_early=True
  ),
  "ddpm": SamplerSpec(
    ddim_and_ddpm.ddpm,
    "leading",
    divides_by_signal=False,
    options=("variance_type",),
  ),
  "plms": SamplerSpec(multistep.plms, "leading", may_stop_early=True),
  "pndm_prk": SamplerSpec(multistep.pndm_prk, "leading", may_stop_early=True),
  "euler": SamplerSpec(
    _euler, options=("interpolation_type", *ENDS), follows_flow=True
  ),
  "euler_ancestral": SamplerSpec(_euler_ancestral),
  "heun": SamplerSpec(euler_and_heun.heun, options=ENDS, follows_flow=True),
  "lms": SamplerSpec(
    multistep.lms, max_order=4, options=ENDS, follows_flow=True
  ),
  "dpm2": SamplerSpec(euler_and_heun.dpm2, options=ENDS, follows_flow=True),
  "dpm2_ancestral": SamplerSpec(euler_and_heun.dpm2_ancestral, options=ENDS),
  "dpmpp_2m": SamplerSpec(dpm_solver.dpmpp_2m, options=_MULTISTEP),
  "dpmpp_2m_sde": SamplerSpec(dpm_solver.dpmpp_2m_sde, options=_MULTISTEP),
  "dpmpp_2s": SamplerSpec(dpm_solver.dpmpp_2s, options=_SINGLE_STEP),
  "dpmpp_3s": SamplerSpec(dpm_solver.dpmpp_3s, options=_SINGLE_STEP),
  "deis": SamplerSpec(multistep.deis, options=(_FINAL, *ENDS)),
  "unipc": SamplerSpec(_unipc, options=_UNIPC),
  "unipc_bh1": SamplerSpec(_unipc_bh1, options=_UNIPC),
  "unipc_bh2": SamplerSpec(_unipc_bh2, options=_UNIPC),
  "lcm": SamplerSpec(
    ddim_and_ddpm.lcm,
    "lcm",
    divides_by_signal=False,
    adds_noise=True,
    options=("timestep_scaling", *_TIMES),
  ),
  "tcd": SamplerSpec(
    ddim_and_ddpm.tcd,
    "lcm",
    divides_by_signal=False,
    max_eta=1.0,
    options=_TIMES,
  ),
}


def register_sampler(name: str, sampler: Sampler | SamplerSpec) -> None:
  """Gives a sampler of your own a name, for this process.

  The name then works wherever a sampler is named, with a timestep spacing
  after it too ("my_sampler karras").

  Args:
    name: small letters, digits and underscores.
    sampler: the function, or a `SamplerSpec` if its defaults are others.

  Raises:
    ValueError: the name is taken, or has other characters.
  """
  if name in SAMPLERS:
    raise ValueError(f"sampler {name!r} exists already; choose another name")
  if not name.isidentifier() or name != name.lower():
    raise ValueError(
      f"a sampler's name has small letters, digits and _, got {name!r}"
    )
  SAMPLERS[name] = as_spec(sampler)


def as_spec(sampler: str | Sampler | SamplerSpec) -> SamplerSpec:
  """The spec of a name, of a function with default limits, or itself.

  Raises:
    ValueError: there is no sampler of that name.
  """
  if isinstance(sampler, SamplerSpec):
    return sampler
  if not isinstance(sampler, str):
    return SamplerSpec(sampler)
  if sampler not in SAMPLERS:
    raise ValueError(
      f"no sampler is called {sampler!r}; there are {', '.join(SAMPLERS)}"
    )
  return SAMPLERS[sampler]


def check_values(
  spec: SamplerSpec,
  name: str,
  values: Mapping[str, float | int],
  options: SolverOptions,
) -> None:
  """Raises ValueError for an option that a sampler has not, or out of range.

  Args:
    values: eta and order, where they are set.
  """
  for option in options.changed:
    if option not in spec.options:
      raise ValueError(
        f"sampler {name!r} has no {option}; it has "
        f"{', '.join(spec.options) or 'no such options'}"
      )
  for option in values:
    if spec.default(option) is None:
      others = [k for k, s in SAMPLERS.items() if s.default(option) is not None]
      raise ValueError(
        f"sampler {name!r} has no {option}; {', '.join(others)} have"
      )
  eta, order = values.get("eta"), values.get("order")
  if eta is not None and not 0 <= eta < np.inf:
    raise ValueError(f"eta must be 0 or more, got {eta}")
  if eta is not None and eta > spec.max_eta:
    raise ValueError(f"eta of {name} must be 0 to {spec.max_eta:g}, got {eta}")
  if order is not None and not 1 <= order <= spec.max_order:
    raise ValueError(
      f"order of {name} must be 1 to {spec.max_order}, got {order}"
    )
