"""Every key of a scheduler_config.json is obeyed, refused or named.

The values are compared with diffusers in test_reference_schedulers.py.
"""

import dataclasses
import json

import numpy as np
import pytest

from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.samplers.diffusers_compat import base_times
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.scheduler_config import (
  sampler_config,
  schedule,
  schedule_config,
  unsupported_options,
)
from ldm_jax.pretrained.configs.scheduler_defaults import SCHEDULERS
from ldm_jax.sampling.inputs.resolve_request import resolve_sampler
from ldm_jax.sampling.request import GenerationRequest

LIKE_SD = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}
UNIPC = "UniPCMultistepScheduler"
DPM = "DPMSolverMultistepScheduler"
EULER = "EulerDiscreteScheduler"
# A value that asks for something, of every key; the default is another.
ASKING = {
  "algorithm_type": "sde-dpmsolver++",
  "beta_end": 0.03,
  "beta_schedule": "squaredcos_cap_v2",
  "beta_start": 0.001,
  "clip_sample": True,
  "disable_corrector": [0],
  "euler_at_final": True,
  "final_sigmas_type": "sigma_min",
  "interpolation_type": "log_linear",
  "lambda_min_clipped": -1.0,
  "lower_order_final": False,
  "num_train_timesteps": 500,
  "original_inference_steps": 100,
  "predict_x0": False,
  "prediction_type": "v_prediction",
  "rescale_betas_zero_snr": True,
  "set_alpha_to_one": False,
  "shift_terminal": 0.1,
  "skip_prk_steps": True,
  "solver_order": 3,
  "solver_p": {},
  "solver_type": "heun",
  "steps_offset": 3,
  "tau_func": "x",
  "thresholding": True,
  "timestep_scaling": 1.0,
  "timestep_spacing": "trailing",
  "timestep_type": "continuous",
  "trained_betas": [0.1],
  "use_beta_sigmas": True,
  "use_dynamic_shifting": True,
  "use_exponential_sigmas": True,
  "use_flow_sigmas": True,
  "use_karras_sigmas": True,
  "use_lu_lambdas": True,
  "variance_type": "fixed_large",
}
# Keys that change nothing alone: of thresholding, of clipping, of flows, of the
# ends of a spacing; and those that a class has and does not use.
HARMLESS = {
  "clip_sample_range",
  "dynamic_thresholding_ratio",
  "sample_max_value",
  "flow_shift",
  "time_shift_type",
  "sigma_min",
  "sigma_max",
}
UNUSED = {
  "LCMScheduler": {"set_alpha_to_one", "steps_offset", "timestep_spacing"},
  "TCDScheduler": {
    "set_alpha_to_one",
    "steps_offset",
    "timestep_scaling",
    "timestep_spacing",
  },
  # diffusers has one formula, and DPM-Solver's words are those of others.
  "DEISMultistepScheduler": {"algorithm_type", "solver_type"},
  UNIPC: {"solver_type"},
  # The class is named in a warning, whatever its keys are.
  "SASolverScheduler": set(SCHEDULERS["SASolverScheduler"]),
  "DPMSolverSDEScheduler": set(SCHEDULERS["DPMSolverSDEScheduler"]),
}
EVERY_KEY = [(kind, key) for kind, keys in SCHEDULERS.items() for key in keys]


def read(config):
  """All that a config changes."""
  return schedule(config), sampler_config(config), unsupported_options(config)


@pytest.mark.parametrize("kind, key", EVERY_KEY)
def test_no_key_is_ignored_silently(kind, key):
  if key in HARMLESS or key in UNUSED.get(kind, ()):
    return
  alone = {"_class_name": kind}
  value, default = ASKING[key], SCHEDULERS[kind][key]
  if type(default) is bool:
    value = not default
  assert value != default
  if key == "timestep_type":
    alone["prediction_type"] = "v_prediction"  # else diffusers ignores it
  before = read(alone)
  try:
    after = read(alone | {key: value})
  except ConfigError as error:
    assert key in str(error) and "needed" in str(error)
    return
  assert before != after


@pytest.mark.parametrize(
  "kind, config, message",
  [
    ("SASolverScheduler", {}, "dpmpp_2m_sde is used"),
    ("DDIMScheduler", {"clip_sample": True}, "clip_sample"),
    ("DDIMScheduler", {"thresholding": True}, "thresholding"),
    (EULER, {"interpolation_type": "log_linear"}, "with compat diffusers"),
    (EULER, {"final_sigmas_type": "sigma_min"}, "with compat diffusers"),
    (EULER, {"sigma_min": 0.1, "use_karras_sigmas": True}, "sigma_min is"),
    (DPM, {"algorithm_type": "dpmsolver"}, "ends at the image"),
    (DPM, {"algorithm_type": "deis"}, "ends at the image"),
    (
      DPM,
      {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
      "wrong sign",
    ),
    (UNIPC, {"predict_x0": False}, "not finite"),
    (UNIPC, {"lower_order_final": False}, "not finite"),
    (UNIPC, {"solver_type": "bh1"}, "not finite"),
    ("PNDMScheduler", {"prediction_type": "v_prediction"}, "converted to"),
    (
      "HeunDiscreteScheduler",
      {"rescale_betas_zero_snr": True},
      "has no rescale_betas_zero_snr; the schedule is rescaled, but not with",
    ),
    (
      "DDIMScheduler",
      {"use_karras_sigmas": True},
      "has no use_karras_sigmas=True; it is ignored",
    ),
    (EULER, {"sampler_temperature": 2}, "has no sampler_temperature=2"),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "may not be finite"),
  ],
)
def test_what_is_done_otherwise_is_named(kind, config, message):
  (line,) = unsupported_options({"_class_name": kind, **LIKE_SD, **config})
  assert message in line and line.startswith(kind)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_a_missing_clip_sample_is_named(kind):
  config = {"_class_name": kind, **LIKE_SD}
  del config["clip_sample"]
  (line,) = unsupported_options(config)
  assert "clip_sample" in line


def test_usual_configs_need_no_warning():
  for kind in ("DDIMScheduler", "PNDMScheduler", EULER, DPM, UNIPC):
    more = {"skip_prk_steps": True, "_diffusers_version": "0.21", "foo": None}
    assert unsupported_options({"_class_name": kind, **LIKE_SD, **more}) == ()


@pytest.mark.parametrize(
  "kind, config, message",
  [
    (EULER, {"use_flow_sigmas": True}, None),
    (DPM, {"use_flow_sigmas": True}, "use_flow_sigmas=True .* needed: False"),
    (DPM, {"variance_type": "learned_range"}, "needed: null"),
    ("DDPMScheduler", {"variance_type": "learned"}, "'fixed_small'"),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "'fixed_small'"),
    (EULER, {"timestep_spacing": "even"}, "'leading' or 'trailing'"),
    (DPM, {"final_sigmas_type": 0}, "'sigma_min'"),
    (EULER, {"steps_offset": "1"}, "a whole number"),
    (EULER, {"steps_offset": 1.5}, "a whole number"),
    (EULER, {"beta_start": "small"}, "a finite number"),
    (EULER, {"beta_start": float("nan")}, "a finite number"),
    (EULER, {"beta_end": True}, "a finite number"),
    (EULER, {"num_train_timesteps": [1000]}, "a whole number"),
    (EULER, {"use_karras_sigmas": "yes"}, "true or false"),
    (EULER, {"sigma_min": -1.0, "use_karras_sigmas": True}, "above 0"),
    (EULER, {"prediction_type": ["epsilon"]}, "'epsilon'"),
    (EULER, {"beta_schedule": {}}, "'scaled_linear'"),
    (
      EULER,
      {"timestep_type": "continuous", "prediction_type": "v_prediction"},
      "'discrete'",
    ),
    (EULER, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "besides"),
    (UNIPC, {"disable_corrector": 0}, "a list of whole numbers"),
    (UNIPC, {"solver_p": {"_class_name": DPM}}, "needed: null"),
    (UNIPC, {"solver_order": 4}, "order of unipc must be 1 to 3"),
    (DPM, {"solver_order": 0}, "order of dpmpp_2m must be 1 to 3"),
    ("LCMScheduler", {"original_inference_steps": 0}, "1 or more"),
    ("EDMEulerScheduler", {}, "DDIMScheduler"),
  ],
)
def test_what_cannot_be_done_is_refused(kind, config, message):
  config = {"_class_name": kind, **LIKE_SD, **config}
  if message is None:  # another class's key
    read(config)
    return
  with pytest.raises(ConfigError, match=message):
    read(config)


def test_options_of_a_config_reach_the_sampler():
  found = sampler_config(
    {
      "_class_name": DPM,
      "algorithm_type": "dpmsolver",
      "final_sigmas_type": "sigma_min",
      "solver_type": "heun",
      "lambda_min_clipped": float("-inf"),  # as diffusers writes it
      "euler_at_final": True,
    }
  )
  expected = SolverOptions(False, "heun", euler_at_final=True)
  assert (found.options, found.order) == (expected, 2)
  again = json.loads(json.dumps(dataclasses.asdict(found)))
  assert again["options"]["solver_type"] == "heun"
  lcm = sampler_config(
    {"_class_name": "LCMScheduler", "original_inference_steps": 100}
  )
  levels = dataclasses.replace(lcm, steps=4).noise_levels(Schedule()).levels
  # 100 times from 999 by 10, every 25th of them.
  assert [level.time for level in levels] == [999, 749, 499, 249]


def test_compat_ignores_zero_snr_as_diffusers_classes_do():
  rescaled, usual = Schedule(zero_terminal_snr=True), Schedule()
  for name in ("heun", "lms", "dpm2", "deis", "dpmpp_2s", "plms", "pndm_prk"):
    config = SamplerConfig(5, name, compat="diffusers")
    levels = config.noise_levels(rescaled).levels
    assert levels == config.noise_levels(usual).levels
    own = dataclasses.replace(config, compat=None)
    assert own.noise_levels(rescaled).levels != own.noise_levels(usual).levels
  for name in ("ddim", "euler", "dpmpp_2m", "unipc"):
    config = SamplerConfig(5, name, "trailing", compat="diffusers")
    assert config.noise_levels(rescaled).levels[0].is_noise


# Of diffusers 0.42.1's set_timesteps, trailing: counts where rounding T to 0 in
# steps of T / n is not rounding T - i T / n, and those with a time more.
TRAILING = {48: (999, 978, 957), 49: (999, 979, 958)}
ONE_MORE = (61, 103, 121, 122, 201, 206, 217, 223, 499, 769, 998)


def test_trailing_times_of_compat():
  config = SamplerConfig(50, "ddim", "trailing", compat="diffusers")
  for steps, expected in TRAILING.items():
    levels = dataclasses.replace(config, steps=steps).noise_levels(Schedule())
    assert tuple(level.time for level in levels.levels[:3]) == expected
  fails, noise = [], Schedule()
  for steps in range(1, 1001):
    options = dataclasses.replace(config, steps=steps)._diffusers_timesteps()
    try:
      assert len(base_times(options, noise, "trailing", steps)) == steps
    except ValueError as error:
      assert f"try {steps - 1} or {steps + 1}" in str(error)
      fails.append(steps)
  assert len(fails) == 62 and {*ONE_MORE} <= {*fails}


def test_comfyuis_beta_and_ddim_uniform():
  """From the definitions of ComfyUI 0.3.64, with scipy's quantiles."""
  from scipy import stats

  times = lambda steps, spacing: [
    level.time
    for level in SamplerConfig(steps, "euler", spacing)
    .noise_levels(Schedule())
    .levels
  ]
  quantiles = stats.beta.ppf(1 - np.arange(8) / 8, 0.6, 0.6)
  assert times(8, "beta") == np.rint(quantiles * 999).tolist()
  assert len(times(400, "beta")) < 400  # equal times are taken once
  assert times(30, "ddim_uniform") == list(range(991, 0, -33))  # 31 of them


def test_another_sampler_with_compat_is_made_from_the_models_config():
  own = sampler_config(
    {"_class_name": EULER, "timestep_spacing": "leading", "steps_offset": 1}
  )
  ask = lambda name, **more: resolve_sampler(
    GenerationRequest(sampler=name, **more), own
  )
  found = ask("dpmpp_2m", compat="diffusers")
  assert (found.timestep_spacing, found.steps_offset) == ("leading", 1)
  assert ask("dpmpp_2m").timestep_spacing is None
  assert ask("dpmpp_2s", compat="diffusers").timestep_spacing is None
  assert ask("pndm", compat="diffusers").final_time == 0
  ddim = sampler_config({"_class_name": "DDIMScheduler", **LIKE_SD})
  request = GenerationRequest(sampler="euler", compat="diffusers")
  assert resolve_sampler(request, ddim).final_time == -1


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_config_is_written_as_it_was_read(kind):
  config = {"_class_name": kind, **LIKE_SD, "prediction_type": "v_prediction"}
  config |= {"_diffusers_version": "0.21.4", "rescale_betas_zero_snr": True}
  if "use_karras_sigmas" in SCHEDULERS[kind]:
    config["use_karras_sigmas"] = True
  if "timestep_spacing" in SCHEDULERS[kind]:
    config["timestep_spacing"] = "trailing"
  written = schedule_config(*schedule(config), config)
  assert read(written) == read(config)
  kept = config.keys() - {"_diffusers_version"}
  assert {key: written[key] for key in kept} == {k: config[k] for k in kept}


def test_a_schedule_that_was_changed_is_written():
  config = {"_class_name": "FlaxEulerDiscreteScheduler", **LIKE_SD}
  written = schedule_config(Schedule("linear", 0.001, 0.02, 500), "x0", config)
  assert written["_class_name"] == EULER
  assert schedule(written) == (Schedule("linear", 0.001, 0.02, 500), "x0")
  assert sampler_config(written) == sampler_config(config)


def test_every_option_belongs_to_a_sampler():
  used = {name for spec in SAMPLERS.values() for name in spec.options}
  assert used == {field.name for field in dataclasses.fields(SolverOptions)}
