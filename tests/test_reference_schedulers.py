"""Every key of a scheduler's config, and every step count, against diffusers.

A config is read as it is in a model's folder. What differs from diffusers under
compat must be refused, or named by `unsupported_options`.
"""

import dataclasses
import inspect
import json

import numpy as np
import pytest

from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.diffusers_compat import (
  IN_LAMBDA,
  IN_SIGMA,
  base_times,
  diffusers_spacings,
)
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.scheduler_config import (
  sampler_config,
  schedule,
  unsupported_options,
)
from ldm_jax.pretrained.configs.scheduler_defaults import SCHEDULERS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
reference = pytest.importorskip("test_reference_samplers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
diffusers.utils.logging.set_verbosity_error()

BETAS, SCHEDULE = reference.BETAS, reference.SCHEDULE
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
DPM = [
  {},
  {"lower_order_final": False},
  {"lower_order_final": False, **SIGMA_MIN},
  {"lower_order_final": True, **SIGMA_MIN},
  SIGMA_MIN,
  {"use_karras_sigmas": True},
  {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 8.0},
  {"use_beta_sigmas": True, **SIGMA_MIN},
  {"lambda_min_clipped": -2.1},
  {"solver_order": 1},
  {"solver_order": 3},
  {"solver_order": 3, "lower_order_final": True, **SIGMA_MIN},
  {"solver_order": 3, "lower_order_final": False, **SIGMA_MIN},
  {"solver_order": 3, "use_exponential_sigmas": True, **SIGMA_MIN},
  {"solver_order": 3, "solver_type": "heun"},
  {"solver_type": "heun"},
  {"solver_type": "heun", "use_karras_sigmas": True, **SIGMA_MIN},
  {"solver_type": "logrho"},
  {"algorithm_type": "deis"},
  {"algorithm_type": "dpmsolver"},
  {"algorithm_type": "dpmsolver", **SIGMA_MIN},
  {"algorithm_type": "dpmsolver", "solver_type": "heun", **SIGMA_MIN},
  {"algorithm_type": "dpmsolver", "solver_order": 3, **SIGMA_MIN},
  {
    "algorithm_type": "dpmsolver",
    "solver_order": 3,
    "solver_type": "heun",
    **SIGMA_MIN,
  },
  {"algorithm_type": "sde-dpmsolver++"},
  {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
  {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
  {"thresholding": True},
  {"variance_type": "learned_range"},
  {"use_flow_sigmas": True},
]
GRID = {
  "DDIMScheduler": [
    {},
    {"clip_sample": False},
    {"clip_sample": False, "thresholding": True},
    {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    {
      "clip_sample": False,
      "rescale_betas_zero_snr": True,
      "timestep_spacing": "trailing",
    },
  ],
  "DDPMScheduler": [
    {"clip_sample": False, "variance_type": kind, **more}
    for kind in (
      "fixed_small",
      "fixed_small_log",
      "fixed_large",
      "fixed_large_log",
      "learned_range",
    )
    for more in ({}, {"steps_offset": 1}, {"timestep_spacing": "trailing"})
  ],
  "PNDMScheduler": [
    {"skip_prk_steps": skips, "timestep_spacing": spacing, **more}
    for skips in (True, False)
    for spacing in ("leading", "trailing", "linspace")
    for more in ({}, {"set_alpha_to_one": True})
  ],
  "EulerDiscreteScheduler": [
    {"timestep_spacing": spacing, **more}
    for spacing in ("leading", "trailing", "linspace")
    for more in (
      {},
      SIGMA_MIN,
      {"interpolation_type": "log_linear"},
      {"interpolation_type": "log_linear", "use_karras_sigmas": True},
      {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 12.0},
      {"use_exponential_sigmas": True, "sigma_min": 0.1},
      {"use_beta_sigmas": True, "sigma_max": 5.0},
      {"sigma_min": 0.1},
      {"timestep_type": "continuous"},
      {"rescale_betas_zero_snr": True},
    )
  ],
  "EulerAncestralDiscreteScheduler": [{}, {"rescale_betas_zero_snr": True}],
  "HeunDiscreteScheduler": [{}, {"clip_sample": True}],
  "LMSDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
  "KDPM2DiscreteScheduler": [{}, {"use_karras_sigmas": True}],
  "KDPM2AncestralDiscreteScheduler": [{}, {"use_exponential_sigmas": True}],
  "DPMSolverMultistepScheduler": [
    *DPM,
    {"euler_at_final": True},
    {"euler_at_final": True, **SIGMA_MIN},
    {"use_lu_lambdas": True},
    {"algorithm_type": "sde-dpmsolver", **SIGMA_MIN},
    {"algorithm_type": "sde-dpmsolver", "solver_type": "heun", **SIGMA_MIN},
    {"lambda_min_clipped": -1.0, "timestep_spacing": "trailing"},
    {"lambda_min_clipped": -1.0, "timestep_spacing": "leading"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
  ],
  "DPMSolverSinglestepScheduler": DPM,
  "DEISMultistepScheduler": [
    {"solver_order": order, **more}
    for order in (1, 2, 3)
    for more in (
      {},
      {"lower_order_final": False},
      {"use_karras_sigmas": True},
      {"use_karras_sigmas": True, "sigma_min": 0.1},
      {"algorithm_type": "dpmsolver++"},
      {"thresholding": True},
    )
  ],
  "UniPCMultistepScheduler": [
    {"solver_order": order, **more}
    for order in (1, 2, 3)
    for more in (
      {},
      SIGMA_MIN,
      {"predict_x0": False},
      {"predict_x0": False, **SIGMA_MIN},
      {"predict_x0": False, "solver_type": "bh1", **SIGMA_MIN},
      {"disable_corrector": [0]},
      {"disable_corrector": [0, 1, 2]},
      {"lower_order_final": False},
      {"lower_order_final": False, **SIGMA_MIN},
      {"solver_type": "bh1"},
      {"solver_type": "bh1", **SIGMA_MIN},
      {"solver_type": "midpoint"},
      {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 8.0},
      {"use_karras_sigmas": True, "sigma_min": 0.1, **SIGMA_MIN},
      {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
      {"use_flow_sigmas": True},
    )
  ],
  "LCMScheduler": [
    {},
    {"original_inference_steps": 100},
    {"timestep_scaling": 1.0},
    {"set_alpha_to_one": False},
    {"clip_sample": True},
  ],
  "TCDScheduler": [
    {},
    {"original_inference_steps": 100},
    {"timestep_scaling": 1.0},
    {"set_alpha_to_one": False},
  ],
}
CASES = [
  pytest.param(name, options, id=f"{name}-{i}")
  for name, grid in GRID.items()
  for i, options in enumerate(grid)
]


def of_class(name, options):
  """Those that the class has; DPM's grid is for two classes."""
  return {k: v for k, v in options.items() if k in SCHEDULERS[name]}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name, options", CASES)
def test_options_are_obeyed_refused_or_named(name, options, kind, monkeypatch):
  config = {"_class_name": name, **BETAS, "prediction_type": kind, **options}
  try:
    noise, _ = schedule(config)
    own, named = sampler_config(config), unsupported_options(config)
  except ConfigError:
    return
  # Those keys of other classes that diffusers keeps and obeys.
  inherited = {k: v for k, v in options.items() if k.startswith("sigma_m")}
  kept = dict(options) if inherited else of_class(name, options)
  for steps in (4, 16, 21):
    try:
      expected, _ = loop(name, kept, steps, kind, noise.alpha_bar, monkeypatch)
    except (ValueError, AssertionError, NameError, RuntimeError):
      assert named, options
      continue
    plan = dataclasses.replace(own, steps=steps, compat="diffusers").plan(noise)
    with np.errstate(all="ignore"):
      found, _ = reference.ours(plan, kind, noise.alpha_bar)
    scale = np.abs(expected).max()
    is_equal = np.abs(found - expected).max() < 2e-4 * scale
    assert is_equal or named, (steps, np.abs(found - expected).max() / scale)
    if named and all("with compat" in line for line in named):
      assert is_equal, (steps, named)


def loop(name, options, steps, kind, alpha_bar, monkeypatch):
  """Their loop with a scheduler that is made from a config."""
  make = getattr(diffusers, name)
  monkeypatch.setattr(
    diffusers,
    name,
    lambda **keys: make.from_config({**keys}),
    raising=False,
  )
  try:
    with np.errstate(all="ignore"):
      return reference.theirs(
        name, options, steps, kind, alpha_bar, {}, monkeypatch
      )
  finally:
    monkeypatch.setattr(diffusers, name, make)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_keys_and_defaults_are_diffusers(name):
  if name == "DPMSolverSDEScheduler":
    pytest.importorskip("torchsde")
  parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
  found = {key: value.default for key, value in parameters.items()}
  del found["self"]
  assert found == SCHEDULERS[name]


def test_a_config_as_diffusers_writes_it_is_read(tmp_path):
  for name in GRID:
    made = getattr(diffusers, name)(**BETAS)
    made.save_pretrained(tmp_path / name)
    file = tmp_path / name / "scheduler_config.json"
    config = json.loads(file.read_text())
    assert sampler_config(config).plan(SCHEDULE)


OF_SAMPLER = {
  "ddim": ("DDIMScheduler", {"clip_sample": False}),
  "ddpm": ("DDPMScheduler", {"clip_sample": False}),
  "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
  "pndm_prk": ("PNDMScheduler", {}),
  "euler": ("EulerDiscreteScheduler", {}),
  "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
  "heun": ("HeunDiscreteScheduler", {}),
  "lms": ("LMSDiscreteScheduler", {}),
  "dpm2": ("KDPM2DiscreteScheduler", {}),
  "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
  "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
  "deis": ("DEISMultistepScheduler", {}),
  "unipc": ("UniPCMultistepScheduler", {}),
}
TIMED = [
  (sampler, spacing)
  for sampler in OF_SAMPLER
  for spacing in ("leading", "trailing", "linspace")
  if spacing in diffusers_spacings(sampler)
]


# Their set_timesteps makes a table of numbers one by one: fewer counts.
SLOW = ("heun", "lms", "dpm2", "dpmpp_2s", "deis", "pndm_prk")
# Those that evaluate the network at other times between.
BETWEEN = ("pndm_prk", "dpm2")


@pytest.mark.parametrize("sampler, spacing", TIMED)
def test_times_of_every_number_of_steps(sampler, spacing):
  """1 to 1000; where diffusers leaves the schedule, we refuse by name."""
  name, options = OF_SAMPLER[sampler]
  options = dict(options)
  if "timestep_spacing" in SCHEDULERS[name]:
    options["timestep_spacing"] = spacing
  made, refused = getattr(diffusers, name)(**BETAS, **options), 0
  base = SamplerConfig(50, sampler, spacing, compat="diffusers", steps_offset=0)
  for steps in range(4, 1001, 31) if sampler in SLOW else range(4, 1001):
    made.set_timesteps(steps)
    theirs = np.unique(made.timesteps.numpy().astype(np.float64))[::-1]
    config = dataclasses.replace(base, steps=steps)
    try:
      found = np.unique(times(config, steps % 50 == 0))[::-1]
    except ValueError as error:
      assert theirs[-1] < 0 and "at time -1" in str(error), steps
      refused += 1
      continue
    if sampler in BETWEEN:
      nearest = np.searchsorted(-theirs, -found - 1e-3)
      theirs = theirs[nearest]
    np.testing.assert_allclose(found, theirs, atol=1e-3, err_msg=str(steps))
  if spacing == "trailing" and sampler not in SLOW:
    assert refused == 62


def times(config, is_whole):
  """Those of the levels, or only those from which levels are made."""
  if is_whole:
    return [level.time for level in config.noise_levels(SCHEDULE).levels]
  parts = config.steps + (config.sampler in IN_LAMBDA)
  options = config._diffusers_timesteps()
  found = base_times(options, SCHEDULE, config.timestep_spacing, parts)
  return found if config.sampler in IN_SIGMA else np.round(found)


def test_lcm_times_of_every_number_of_steps():
  for original in (50, 100):
    made = diffusers.LCMScheduler(original_inference_steps=original)
    config = sampler_config(
      {"_class_name": "LCMScheduler", "original_inference_steps": original}
    )
    for steps in range(1, original + 1):
      made.set_timesteps(steps)
      own = dataclasses.replace(config, steps=steps, compat="diffusers")
      levels = own.noise_levels(SCHEDULE).levels
      assert [level.time for level in levels] == made.timesteps.tolist(), steps
