"""The keys of a scheduler_config.json: checked, refused, or named in warnings.

Every key of the class is obeyed (see `scheduler_config`), listed as harmless,
or found here. Keys of other classes say nothing, as in diffusers, which keeps
them when a scheduler is made from another's config; so do names that begin with
an underscore.
"""

import math
from collections.abc import Iterator
from typing import Any

from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.solver_options import WITH_COMPAT
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.scheduler_defaults import (
  FLOW_SCHEDULERS,
  INHERITED,
  SCHEDULERS,
  WORDS,
  type_of,
)
from ldm_jax.pretrained.configs.strict_config import (
  Config,
  class_name,
  refusal,
)

# Schedulers that are not supported, and the nearest sampler.
NEAREST = {
  "SASolverScheduler": "dpmpp_2m_sde",
  "DPMSolverSDEScheduler": "dpmpp_2m_sde",
}
# Values that are refused, with what is needed; the first two are of flows.
_REFUSED = {
  "use_flow_sigmas": (False,),
  "use_dynamic_shifting": (False,),
  "shift_terminal": (None,),
  "solver_p": (None,),
  "tau_func": (None,),
}
# DDPM's; other classes have no variance of their own.
_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
# Keys that are worth a line where a class has no such key.
_NOTED = (
  *_SIGMAS,
  "use_lu_lambdas",
  "use_flow_sigmas",
  "euler_at_final",
  "thresholding",
)
_ALL_KEYS = frozenset(key for keys in SCHEDULERS.values() for key in keys)
_APPLIED = "applied with compat diffusers alone (--compat diffusers)"


def read_values(config: Config) -> tuple[str, dict[str, Any]]:
  """The class, and the values of its keys; missing ones have its defaults.

  Raises:
    ConfigError: an unknown class, a value of a wrong type, or one that asks
      for something that is not supported.
  """
  kind = class_name(config, (*SCHEDULERS, *FLOW_SCHEDULERS))
  if kind in FLOW_SCHEDULERS:
    raise ConfigError(f"{kind} is of a flow, not of a table of betas")
  values = dict(SCHEDULERS[kind])
  if "use_karras_sigmas" in values:
    values |= dict.fromkeys(INHERITED)
  for key in values.keys() & config.keys():
    if config[key] is not None or key in WORDS or values[key] is None:
      values[key] = checked_value(kind, key, config[key], values[key])
  _refuse(kind, values)
  return kind, values


def checked_value(kind: str, key: str, value: Any, default: Any) -> Any:
  """The value, if it is of the key's type.

  Raises:
    ConfigError: it is not.
  """
  if key in WORDS and value not in WORDS[key]:
    raise refusal(kind, key, value, WORDS[key])
  needed = type_of(key, default)
  if needed is None or value is None:
    return value
  if needed is float:
    is_number = type(value) in (int, float) and not math.isnan(value)
    if not is_number or (math.isinf(value) and key != "lambda_min_clipped"):
      raise refusal(kind, key, value, "a finite number")
  elif needed is list:
    if not isinstance(value, list | tuple) or not all(
      type(item) is int for item in value
    ):
      raise refusal(kind, key, value, "a list of whole numbers")
  elif type(value) is not needed:
    names = {bool: "true or false", int: "a whole number", str: "a string"}
    raise refusal(kind, key, value, names[needed])
  return value


def _refuse(kind: str, values: Config) -> None:
  """Refuses what would be another network or process, and contradictions."""
  for key, needed in _REFUSED.items():
    if key in values and values[key] not in needed:
      raise refusal(kind, key, values[key], needed)
  if kind == "DDPMScheduler" and values["variance_type"] not in _VARIANCES:
    raise refusal(kind, "variance_type", values["variance_type"], _VARIANCES)
  if kind != "DDPMScheduler" and values.get("variance_type") is not None:
    raise refusal(kind, "variance_type", values["variance_type"], (None,))
  is_v = values["prediction_type"] == "v_prediction"
  if values.get("timestep_type") == "continuous" and is_v:
    # The network is given ln(sigma) / 4 in place of a time.
    raise refusal(kind, "timestep_type", "continuous", ("discrete",))
  spaced = [key for key in _SIGMAS if values.get(key)]
  if len(spaced) > 1:
    raise refusal(kind, spaced[1], True, f"false, besides {spaced[0]}")


def warnings(config: Config, sampler: SamplerConfig) -> tuple[str, ...]:
  """A line for everything that is done otherwise than diffusers does it.

  Args:
    sampler: what was read of the config.
  """
  kind, values = read_values(config)
  found = []
  if kind in NEAREST:
    found.append(f"{kind} is not among the samplers; {NEAREST[kind]} is used")
  for key in ("thresholding", "clip_sample"):
    if values.get(key):
      found.append(
        f"{kind} sets {key}, which is not applied to latents (see --threshold)"
      )
  found += [f"{kind}'s {key} is {_APPLIED}" for key in _with_compat(sampler)]
  found += [f"{kind}: {line}" for line in _defects(kind, values)]
  found += [f"{kind} has no {line}" for line in _foreign(config, values)]
  return tuple(found)


def _with_compat(sampler: SamplerConfig) -> Iterator[str]:
  """Keys that choose noise levels which only diffusers has."""
  yield from (key for key in WITH_COMPAT if key in sampler.options.changed)
  if sampler.final_time == 0 and not sampler.spec.may_stop_early:
    yield "final_sigmas_type 'sigma_min'"


def _defects(kind: str, values: Config) -> Iterator[str]:
  """Where diffusers fails or is defective, and what is done here."""
  algorithm = str(values.get("algorithm_type"))
  is_clean = values.get("final_sigmas_type") == "zero"
  is_noise = values["prediction_type"] == "epsilon"
  if kind == "PNDMScheduler" and not is_noise:
    yield (
      "diffusers combines predictions of several times as if they were noise; "
      "here they are converted to noise first"
    )
  if values.get("rescale_betas_zero_snr") and is_noise:
    yield (
      "the schedule ends in pure noise, of which a prediction of noise says "
      "nothing; results may not be finite, as in diffusers"
    )
  if kind.startswith("DPMSolver") and kind not in NEAREST:
    yield from _defects_of_dpm(algorithm, is_clean, values)
  if kind == "UniPCMultistepScheduler" and is_clean:
    for key, value in (
      ("predict_x0", False),
      ("lower_order_final", False),
      ("solver_type", "bh1"),
    ):
      if values[key] == value:
        yield (
          f"diffusers' result with {key}={value!r} and final_sigmas_type "
          "'zero' is not finite; here the last step is of order 1"
        )


def _defects_of_dpm(
  algorithm: str, is_clean: bool, values: Config
) -> Iterator[str]:
  is_third = values["solver_order"] == 3
  if algorithm.startswith("sde") and is_third:
    yield (
      "diffusers' stochastic formula of order 3 has a wrong sign or is "
      "missing; here the sign is that of the ODE"
    )
  if is_clean and not algorithm.endswith("++"):
    yield (
      f"diffusers has no {algorithm!r} with final_sigmas_type 'zero'; here the "
      "last step ends at the image"
    )
  is_taylor = is_third or values["solver_type"] == "heun"
  if is_taylor and not is_clean and any(values[key] for key in _SIGMAS):
    yield (
      "diffusers' last step with final_sigmas_type 'sigma_min' is of length 0, "
      "and its result not finite; here that step changes nothing"
    )


def _foreign(config: Config, values: Config) -> Iterator[str]:
  """Keys that ask for something, and that the class does not have."""
  key = "rescale_betas_zero_snr"
  if config.get(key) and key not in values:
    yield f"{key}; the schedule is rescaled, but not with compat diffusers"
  for key, value in config.items():
    is_asking = value is not None and value is not False
    if key.startswith("_") or key in values or not is_asking:
      continue
    if key not in _ALL_KEYS or (key in _NOTED and value is True):
      yield f"{key}={value!r}; it is ignored, as by diffusers"
