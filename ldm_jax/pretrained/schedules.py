"""The scheduler_config.json of diffusers, to and from `Schedule`."""

from typing import Any

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.nodes import ConfigError
from ldm_jax.pretrained.configs import DIFFUSERS, Config, class_name, refusal
from ldm_jax.pretrained.schemas import SCHEDULERS

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BETAS = {
  "scaled_linear": "scaled_linear",
  "linear": "linear",
  "squaredcos_cap_v2": "cosine",
}


def schedule(config: Config) -> tuple[Schedule, Prediction]:
  """The noise of a scheduler_config.json, and what its network predicts.

  All other keys are about how to sample.

  Raises:
    ConfigError: a scheduler without a table of betas, or another table than
      `Schedule` makes.
  """
  kind = class_name(config, SCHEDULERS)
  values = SCHEDULERS[kind] | dict(config)
  for key, words in (
    ("beta_schedule", _BETAS),
    ("prediction_type", PREDICTIONS),
  ):
    if values[key] not in words:
      raise refusal(kind, key, values[key], words)
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
  words = {ours: theirs for theirs, ours in PREDICTIONS.items()}
  return {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": DIFFUSERS,
    "beta_end": schedule.end,
    "beta_schedule": betas[schedule.kind],
    "beta_start": schedule.start,
    "clip_sample": False,
    "num_train_timesteps": schedule.steps,
    "prediction_type": words[prediction],
    "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
  }
