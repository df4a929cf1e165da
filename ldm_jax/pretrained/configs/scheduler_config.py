"""diffusers' scheduler_config.json, to and from a `Schedule` and a sampler."""

import math
from typing import Any

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.samplers.sampler_names import parse_sampler_name
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import TimestepSpacing
from ldm_jax.diffusion.schedule import CLEAN_TIME, Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs import scheduler_options
from ldm_jax.pretrained.configs.scheduler_options import NEAREST, read_values
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  refusal,
)
from ldm_jax.pretrained.flow_match import flow_scheduler

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BETAS = {
  "scaled_linear": "scaled_linear",
  "linear": "linear",
  "squaredcos_cap_v2": "cosine",
}


def schedule(config: Config) -> tuple[Schedule, Prediction]:
  """The noise schedule of a scheduler_config.json, and what its model predicts.

  All other keys are of the sampler; see `sampler_config`. A rescaling to zero
  terminal SNR is of the model, so it is read even of a class that has no such
  key: diffusers keeps it when a scheduler is made from another's config.

  Raises:
    ConfigError: a scheduler without a table of betas, another table than
      `Schedule` makes, or a key that asks for something else.
  """
  if flow_scheduler.is_flow(config):
    return flow_scheduler.schedule(config)
  kind, values = read_values(config)
  for key, known in (
    ("beta_schedule", _BETAS),
    ("prediction_type", PREDICTIONS),
  ):
    if values[key] not in tuple(known):
      raise refusal(kind, key, values[key], known)
  if values["trained_betas"] is not None:
    raise refusal(kind, "trained_betas", "...", (None,))
  try:
    made = Schedule(
      _BETAS[values["beta_schedule"]],
      float(values["beta_start"]),
      float(values["beta_end"]),
      values["num_train_timesteps"],
      bool(config.get("rescale_betas_zero_snr", False)),
    )
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from error
  return made, PREDICTIONS[values["prediction_type"]]


# As diffusers chooses where a config asks for several.
_SPACED = (
  ("use_karras_sigmas", "karras"),
  ("use_lu_lambdas", "lu"),
  ("use_exponential_sigmas", "exponential"),
  ("use_beta_sigmas", "beta_sigmas"),
)
_SDE = "sde-"


def sampler_config(config: Config) -> SamplerConfig:
  """The sampler of a scheduler_config.json with its timestep spacing and end.

  The number of steps is the caller's. Missing keys have the class's defaults of
  diffusers 0.42, but for the spacing, which is then the sampler's own.

  Raises:
    ConfigError: it is of an unknown class, or a key asks for something that is
      not supported.
  """
  if flow_scheduler.is_flow(config):
    return flow_scheduler.sampler_config(config)
  kind, values = read_values(config)
  sampler = _sampler(kind, values)
  is_single_sde = _is_sde(values) and kind == "DPMSolverSinglestepScheduler"
  base = (
    config.get("timestep_spacing") if "timestep_spacing" in values else None
  )
  spacing = _by_sigma(values) or base
  order = None
  if kind not in NEAREST:
    order = values.get("solver_order")
  try:
    return SamplerConfig(
      sampler=sampler,
      timestep_spacing=None if sampler in ("lcm", "tcd") else spacing,
      eta=1.0 if is_single_sde else None,
      order=order,
      final_time=CLEAN_TIME if _ends_clean(sampler, values) else 0.0,
      steps_offset=_steps_offset(kind, config),
      base_spacing=base,
      options=_options(sampler, values),
    )
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from error


def _steps_offset(kind: str, config: Config) -> int:
  """Read even of a class without such a key, as the schedule's rescaling."""
  offset = config.get("steps_offset")
  if offset is not None and type(offset) is not int:
    raise refusal(kind, "steps_offset", offset, "a whole number")
  return offset or 0


def _is_sde(values: Config) -> bool:
  return str(values.get("algorithm_type")).startswith(_SDE)


def _sampler(kind: str, values: Config) -> str:
  """The sampler's name here."""
  if kind in NEAREST:
    return NEAREST[kind]
  if kind == "PNDMScheduler":
    return "plms" if values["skip_prk_steps"] else "pndm_prk"
  if kind == "DPMSolverMultistepScheduler":
    return "dpmpp_2m_sde" if _is_sde(values) else "dpmpp_2m"
  if kind == "DPMSolverSinglestepScheduler":
    return "dpmpp_3s" if values["solver_order"] == 3 else "dpmpp_2s"
  if kind == "UniPCMultistepScheduler":
    return "unipc_bh1" if values["solver_type"] == "bh1" else "unipc"
  return parse_sampler_name(kind)[0]


def _by_sigma(values: Config) -> TimestepSpacing | None:
  """The spacing that overrides timestep_spacing, if there is one."""
  for key, spacing in _SPACED:
    if values.get(key):
      return spacing
  return None


def _ends_clean(sampler: str, values: Config) -> bool:
  """Whether the last step ends at the image, not at the first time."""
  if SAMPLERS[sampler].may_stop_early:
    return values["set_alpha_to_one"]
  return values.get("final_sigmas_type", "zero") == "zero"


def _options(sampler: str, values: Config) -> SolverOptions:
  """What else the sampler obeys; algorithm_type is an option here."""
  found = {
    name: values[name] for name in SAMPLERS[sampler].options if name in values
  }
  algorithm = values.get("algorithm_type", "")
  if "solver_type" in found:
    found["predict_x0"] = algorithm.removeprefix(_SDE) != "dpmsolver"
    is_heun = found["solver_type"] == "heun"
    found["solver_type"] = "heun" if is_heun else "midpoint"
  if "variance_type" in found:
    is_large = found["variance_type"] == "fixed_large"
    found["variance_type"] = "fixed_large" if is_large else "fixed_small"
  if "disable_corrector" in found:
    found["disable_corrector"] = tuple(found["disable_corrector"])
  if found.get("lambda_min_clipped") == -math.inf:
    del found["lambda_min_clipped"]
  if _by_sigma(values) is None:
    found = found | dict.fromkeys(("sigma_min", "sigma_max") & found.keys())
  return SolverOptions(**found)


def unsupported_options(config: Config) -> tuple[str, ...]:
  """What a scheduler_config.json asks for that `sampler_config` does not do.

  Raises:
    ConfigError: see `sampler_config`.
  """
  if flow_scheduler.is_flow(config):
    return flow_scheduler.unsupported_options(config)
  return scheduler_options.warnings(config, sampler_config(config))


# Without these diffusers clips latents, and starts a step too late.
_DDIM = {
  "_class_name": "DDIMScheduler",
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
  "timestep_spacing": "leading",
}


def schedule_config(
  schedule: Schedule, prediction: Prediction, source: Config | None = None
) -> dict[str, Any]:
  """A scheduler's config with the given schedule.

  Args:
    source: the config that the model was read with: its sampler and all other
      keys are kept. None makes a DDIMScheduler that samples as Stable
      Diffusion's own do. A rectified flow needs one of a FlowMatch scheduler;
      see `flow_scheduler.schedule_config`.

  Raises:
    ConfigError: diffusers has no such betas.
  """
  if source is not None and flow_scheduler.is_flow(source):
    return flow_scheduler.schedule_config(schedule, source)
  betas = {ours: theirs for theirs, ours in _BETAS.items()}
  if schedule.kind not in betas:
    raise ConfigError(
      f"diffusers has no schedule of kind {schedule.kind!r}; it has "
      f"{', '.join(betas)}"
    )
  predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
  if prediction not in predictions:
    raise ConfigError(
      f"diffusers' schedulers have no prediction {prediction!r}; they have "
      f"{', '.join(predictions)}"
    )
  noise = {
    "_diffusers_version": DIFFUSERS,
    "beta_end": schedule.end,
    "beta_schedule": betas[schedule.kind],
    "beta_start": schedule.start,
    "num_train_timesteps": schedule.steps,
    "prediction_type": predictions[prediction],
    "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    "trained_betas": None,
  }
  if source is None:
    return _DDIM | noise
  kind, values = read_values(source)
  is_known = "rescale_betas_zero_snr" in {*values, *source}
  if not is_known and not schedule.zero_terminal_snr:
    del noise["rescale_betas_zero_snr"]  # the class has no such key
  return dict(source) | noise | {"_class_name": kind}
