"""diffusers' scheduler_config.json, to and from a `Schedule` and a sampler."""

from typing import Any

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.sampler_names import parse_sampler_name
from ldm_jax.diffusion.schedule import CLEAN_TIME, Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.defaults import SCHEDULERS
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  class_name,
  refusal,
)

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BETAS = {
  "scaled_linear": "scaled_linear",
  "linear": "linear",
  "squaredcos_cap_v2": "cosine",
}


def schedule(config: Config) -> tuple[Schedule, Prediction]:
  """The noise schedule of a scheduler_config.json, and what its model predicts.

  All other keys are of the sampler; see `sampler_config`.

  Raises:
    ConfigError: a scheduler without a table of betas, or another table than
      `Schedule` makes.
  """
  kind = class_name(config, SCHEDULERS)
  values = SCHEDULERS[kind] | dict(config)
  for key, known in (
    ("beta_schedule", _BETAS),
    ("prediction_type", PREDICTIONS),
  ):
    if values[key] not in known:
      raise refusal(kind, key, values[key], known)
  if values["trained_betas"] is not None:
    raise refusal(kind, "trained_betas", "...", (None,))
  try:
    made = Schedule(
      _BETAS[values["beta_schedule"]],
      values["beta_start"],
      values["beta_end"],
      values["num_train_timesteps"],
      bool(values["rescale_betas_zero_snr"]),
    )
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from error
  return made, PREDICTIONS[values["prediction_type"]]


# Schedulers that are not supported, and the nearest sampler.
_NEAREST = {
  "SASolverScheduler": "dpmpp_2m_sde",
  "DPMSolverSDEScheduler": "dpmpp_2m_sde",
}
# Defaults of set_alpha_to_one.
_STOPS = {"ddim": True, "plms": False, "pndm_prk": False}
_SPACED = (
  ("use_karras_sigmas", "karras"),
  ("use_exponential_sigmas", "exponential"),
  ("use_beta_sigmas", "beta"),
)


def sampler_config(config: Config) -> SamplerConfig:
  """The sampler of a scheduler_config.json with its timestep spacing and end.

  The number of steps is the caller's. Missing keys have the class's defaults of
  diffusers 0.42.

  Raises:
    ConfigError: it is of an unknown class.
  """
  kind = class_name(config, SCHEDULERS)
  sampler = _NEAREST.get(kind) or parse_sampler_name(kind)[0]
  is_stochastic = str(config.get("algorithm_type", "")).startswith("sde")
  if sampler == "plms" and not config.get("skip_prk_steps", False):
    sampler = "pndm_prk"
  if sampler == "dpmpp_2m" and is_stochastic:
    sampler = "dpmpp_2m_sde"
  if sampler == "dpmpp_2s" and config.get("solver_order", 2) == 3:
    sampler = "dpmpp_3s"
  if sampler == "unipc" and config.get("solver_type") == "bh1":
    sampler = "unipc_bh1"
  order = None
  if sampler in ("unipc", "unipc_bh1", "deis"):
    order = config.get("solver_order", 2)
  timestep_spacing = config.get("timestep_spacing")
  for key, spacing in _SPACED:
    if config.get(key):
      timestep_spacing = spacing
  # Configs may keep keys of other classes, which this one ignores.
  if sampler in _STOPS:
    is_clean = config.get("set_alpha_to_one", _STOPS[sampler])
  else:
    is_clean = config.get("final_sigmas_type", "zero") == "zero"
  try:
    return SamplerConfig(
      sampler=sampler,
      timestep_spacing=None if sampler in ("lcm", "tcd") else timestep_spacing,
      order=order,
      final_time=CLEAN_TIME if is_clean else 0.0,
      steps_offset=config.get("steps_offset", 0),
      base_spacing=config.get("timestep_spacing"),
    )
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from error


def unsupported_options(config: Config) -> tuple[str, ...]:
  """What a scheduler_config.json asks for that `sampler_config` does not do."""
  kind, found = class_name(config, SCHEDULERS), []
  if kind in _NEAREST:
    found.append(f"{kind} is not among the samplers; {_NEAREST[kind]} is used")
  algorithm = config.get("algorithm_type", "dpmsolver++")
  if kind.startswith("DPMSolver") and not algorithm.endswith("++"):
    found.append(f"{kind}'s {algorithm!r} is sampled as {algorithm}++")
  order = config.get("solver_order", 2)
  if kind == "DPMSolverMultistepScheduler" and order != 2:
    found.append(f"{kind} of order {order} is sampled with order 2")
  if kind.startswith("DPMSolver") and config.get("solver_type") == "heun":
    found.append(f"{kind}'s solver_type 'heun' is sampled as 'midpoint'")
  for key in ("thresholding", "clip_sample"):
    if config.get(key):
      found.append(
        f"{kind} sets {key}, which is not applied to latents (see --threshold)"
      )
  return tuple(found)


def schedule_config(
  schedule: Schedule, prediction: Prediction
) -> dict[str, Any]:
  """A DDIMScheduler's config that samples as Stable Diffusion's own do.

  Raises:
    ConfigError: diffusers has no such betas.
  """
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
  return {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": DIFFUSERS,
    "beta_end": schedule.end,
    "beta_schedule": betas[schedule.kind],
    "beta_start": schedule.start,
    "clip_sample": False,
    "num_train_timesteps": schedule.steps,
    "prediction_type": predictions[prediction],
    "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
  }
