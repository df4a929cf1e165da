"""scheduler_config.json of diffusers' FlowMatch schedulers, in and out.

Their networks are fed z = (1 - s) x0 + s eps and the time T s, and predict
eps - x0; a backbone with `flow_steps` does that.
"""

import dataclasses
from typing import Any

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.timesteps import TimestepSpacing
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.diffusion.shift import DynamicShift
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.scheduler_defaults import (
  FLOW_SCHEDULERS,
  SCHEDULERS,
)
from ldm_jax.pretrained.configs.scheduler_options import checked_value
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  class_name,
  refusal,
)

EULER = "FlowMatchEulerDiscreteScheduler"
_SPACED: tuple[tuple[str, TimestepSpacing], ...] = (
  ("use_karras_sigmas", "karras"),
  ("use_exponential_sigmas", "exponential"),
  ("use_beta_sigmas", "beta_sigmas"),
)
# Keys of other schedulers that ask for nothing where they have this value.
_DEFAULTS = {
  key: value for keys in SCHEDULERS.values() for key, value in keys.items()
}


def is_flow(config: Config) -> bool:
  """Whether a scheduler_config.json is of a flow."""
  return str(config.get("_class_name")) in FLOW_SCHEDULERS


def read_values(config: Config) -> tuple[str, dict[str, Any]]:
  """The class, and the values of its keys; missing ones have its defaults.

  Raises:
    ConfigError: a value of a wrong type, or one that is not supported.
  """
  kind = class_name(config, FLOW_SCHEDULERS)
  values = dict(FLOW_SCHEDULERS[kind])
  for key in values.keys() & config.keys():
    if config[key] is not None:
      values[key] = checked_value(kind, key, config[key], values[key])
  if values.get("invert_sigmas"):
    raise refusal(kind, "invert_sigmas", True, (False,))
  spaced = [key for key, _ in _SPACED if values.get(key)]
  if len(spaced) > 1:
    raise refusal(kind, spaced[1], True, f"false, besides {spaced[0]}")
  return kind, values


def schedule(config: Config) -> tuple[Schedule, Prediction]:
  """The straight line in `num_train_timesteps` steps, and "flow".

  Raises:
    ConfigError: see `read_values`.
  """
  kind, values = read_values(config)
  try:
    made = Schedule("rectified_flow", steps=values["num_train_timesteps"])
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from error
  return made, "flow"


def sampler_config(config: Config) -> SamplerConfig:
  """The sampler with its shift; the number of steps is the caller's.

  Its times are those of `set_timesteps(n)`, which are "linspace" to the
  schedule's first time. Pipelines such as FLUX's give times of their own; see
  `with_own_times`.

  Raises:
    ConfigError: see `read_values`.
  """
  kind, values = read_values(config)
  spacings = [spacing for key, spacing in _SPACED if values.get(key)]
  sampler = "lcm" if values.get("stochastic_sampling") else "euler"
  try:
    return SamplerConfig(
      sampler=sampler if kind == EULER else "heun",
      timestep_spacing=spacings[0] if spacings else "linspace",
      base_spacing="linspace",
      shift=_shift(values),
      shift_terminal=values.get("shift_terminal") or None,
    )
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from error


def _shift(values: Config) -> float | DynamicShift:
  if not values.get("use_dynamic_shifting"):
    return float(values["shift"])
  return DynamicShift(
    float(values["base_shift"]),
    float(values["max_shift"]),
    values["base_image_seq_len"],
    values["max_image_seq_len"],
    values["time_shift_type"],
  )


def with_own_times(sampler: SamplerConfig) -> SamplerConfig:
  """The sampler with times 1, 1 - 1/n, ..., 1/n before the shift.

  Those that FLUX's pipeline passes to the scheduler.
  """
  is_plain = sampler.timestep_spacing == "linspace"
  return dataclasses.replace(
    sampler,
    timestep_spacing="trailing" if is_plain else sampler.timestep_spacing,
    base_spacing="trailing",
  )


def unsupported_options(config: Config) -> tuple[str, ...]:
  """A line for every key that asks for something the class has not.

  Raises:
    ConfigError: see `read_values`.
  """
  kind, values = read_values(config)
  return tuple(
    f"{kind} has no {key}={value!r}; it is ignored"
    for key, value in config.items()
    if key not in values
    and not key.startswith("_")
    and value not in (None, False, _DEFAULTS.get(key))
  )


def schedule_config(made: Schedule, source: Config | None) -> dict[str, Any]:
  """A flow scheduler's config.

  Args:
    source: the config that the model was read with, whose keys are kept; None
      makes a FlowMatchEulerDiscreteScheduler that shifts nothing.

  Raises:
    ConfigError: the schedule or the source is not of a flow.
  """
  if not made.is_flow:
    raise ConfigError(
      f"a schedule of kind {made.kind!r} is not a flow, which diffusers' "
      "FlowMatch schedulers are of"
    )
  if source is None:
    source = {"_class_name": EULER} | FLOW_SCHEDULERS[EULER]
  read_values(source)
  return dict(source) | {
    "_diffusers_version": DIFFUSERS,
    "num_train_timesteps": made.steps,
  }
