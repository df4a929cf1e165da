"""Timestep spacings, and the names of spacings and samplers."""

import pathlib
import re
import runpy

import numpy as np
import pytest

from ldm_jax.cli.sample import parser, request_of
from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.samplers.sampler_names import (
  SPACING_NAMES,
  parse_sampler_name,
  parse_timestep_spacing,
  sampler_names,
)
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import (
  BY_RATIO,
  noise_levels,
  spaced_times,
)
from ldm_jax.diffusion.schedule import CLEAN_TIME, Schedule
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.pretrained.configs.scheduler_config import sampler_config
from ldm_jax.sampling.inputs.resolve_request import resolve_sampler

SCHEDULE = Schedule()
NO_PARAMS = Parameters(None, None, None, None)
SPACINGS = [name for name in SPACING_NAMES if name != "lcm"]


@pytest.mark.parametrize("timestep_spacing", SPACINGS)
def test_every_number_of_steps_has_its_times(timestep_spacing):
  for steps in range(1, 1001):
    if timestep_spacing not in BY_RATIO:
      found = spaced_times(steps, timestep_spacing)
    elif steps % 37 == 1:
      levels = noise_levels(SCHEDULE, steps, timestep_spacing).levels
      found = np.array([level.time for level in levels])
    else:
      continue
    if timestep_spacing in ("beta", "ddim_uniform"):  # as in ComfyUI
      assert steps > 30 or abs(len(found) - steps) <= 1
    else:
      assert len(found) == steps
    assert found[0] <= 999 and found[-1] >= 0
    assert np.all(np.diff(found) < 0), steps


@pytest.mark.parametrize("timestep_spacing", SPACINGS)
def test_a_level_is_the_schedules_level_of_its_time(timestep_spacing):
  for level in noise_levels(SCHEDULE, 17, timestep_spacing).levels:
    same = SCHEDULE.level_at(level.time)
    np.testing.assert_allclose(level, same, rtol=1e-9)
    np.testing.assert_allclose(level.signal**2 + level.sigma**2, 1)


def test_published_timesteps():
  # Steps 1, 21, ..., 981 of LDM's make_ddim_timesteps(50).
  np.testing.assert_array_equal(
    spaced_times(50, "leading"), np.arange(981, 0, -20)
  )
  # 999, 979, ..., 19: trailing spacing, as Stability's sgm steps from 999.
  np.testing.assert_array_equal(
    spaced_times(50, "trailing"), np.arange(999, 0, -20)
  )
  assert (
    spaced_times(1000, "leading")[0] == 999
    and spaced_times(1, "trailing")[0] == 999
  )
  # DPM-Solver of CompVis, 20 steps: 999, 949.05, ..., 49.95.
  np.testing.assert_allclose(
    spaced_times(20, "sgm_uniform"), 999 * np.arange(20, 0, -1) / 20
  )
  # LCM with 4 steps of 50: 999, 759, 499, 259.
  np.testing.assert_array_equal(spaced_times(4, "lcm"), [999, 759, 499, 259])


def test_quadratic_is_what_ldm_makes():
  """make_ddim_timesteps("quad") for counts where it repeats no time."""
  for steps in (5, 10, 20):
    rising = (np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2).astype(int) + 1
    np.testing.assert_array_equal(
      spaced_times(steps, "quadratic"), rising[::-1]
    )


def test_karras_spacing():
  """Karras et al. 2022, eq. 5, between Stable Diffusion's ends."""
  ratios = [
    level.ratio for level in noise_levels(SCHEDULE, 10, "karras").levels
  ]
  np.testing.assert_allclose(ratios[0], 14.61464, rtol=1e-5)
  np.testing.assert_allclose(ratios[-1], 0.029167, rtol=1e-4)
  roots = np.array(ratios) ** (1 / 7)
  np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0])


def test_beta_spacing_is_of_quantiles():
  from scipy.stats import beta

  levels = noise_levels(SCHEDULE, 9, "beta_sigmas").levels
  ratios = np.array([level.ratio for level in levels])
  fraction = (ratios - ratios[-1]) / (ratios[0] - ratios[-1])
  np.testing.assert_allclose(
    fraction, beta.ppf(np.linspace(1, 0, 9), 0.6, 0.6), atol=1e-9
  )


@pytest.mark.parametrize("steps", [0, -3, 1001])
@pytest.mark.parametrize("timestep_spacing", ["leading", "karras"])
def test_impossible_step_counts_are_refused(steps, timestep_spacing):
  with pytest.raises(ValueError, match="between 1 and 1000"):
    SamplerConfig(steps, timestep_spacing=timestep_spacing).plan(SCHEDULE)


def test_more_steps_than_were_distilled_are_refused():
  with pytest.raises(ValueError, match="between 1 and 50"):
    SamplerConfig(51, "lcm").plan(SCHEDULE)


def test_times_and_sigmas_may_be_given():
  own = SamplerConfig(times=(900, 450.5, 10)).noise_levels(SCHEDULE)
  assert [level.time for level in own.levels] == [900, 450.5, 10]
  assert own.next_levels[-1].time == CLEAN_TIME
  own = SamplerConfig(sampler="euler", sigmas=(10, 3, 0.5)).noise_levels(
    SCHEDULE
  )
  np.testing.assert_allclose([x.ratio for x in own.levels], [10, 3, 0.5])


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"times": (1, 2)}, "must decrease"),
    ({"times": (1000, 2)}, "at most 999"),
    ({"sigmas": (3.0, 4.0)}, "decreasing"),
    ({"sigmas": (3.0, -1.0)}, "above 0"),
    ({"sigmas": (float("nan"),)}, "finite"),
    ({"times": (3,), "sigmas": (1.0,)}, "not both"),
    ({"sampler": "eular"}, "no sampler"),
    ({"sampler": "euler", "eta": 0.5}, "has no eta; ddim"),
    ({"eta": -1.0}, "0 or more"),
    ({"sampler": "tcd", "eta": 1.5}, "0 to 1"),
    ({"sampler": "unipc", "order": 4}, "1 to 3"),
    ({"order": 2}, "has no order"),
    ({"options": SolverOptions(predict_x0=False)}, "ddim.* no predict_x0"),
    (
      {"steps": 61, "timestep_spacing": "trailing", "compat": "diffusers"},
      "62 steps for 61 of 'trailing'.* time -1.* try 60 or 62",
    ),
    (
      {"timestep_spacing": "quadratic", "compat": "diffusers"},
      "no timestep spacing",
    ),
    ({"steps": 1000, "compat": "diffusers"}, "first time is 1000"),
  ],
)
def test_wrong_sampler_configs_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    SamplerConfig(**wrong).plan(SCHEDULE)


@pytest.mark.parametrize(
  "key, message",
  [
    ("timestep_spacing", "timestep_spacing must be one of leading, .*karras"),
    ("base_spacing", "base_spacing must be one of leading"),
    ("compat", "compat must be diffusers or None, got 'karas'"),
  ],
)
def test_unknown_words_are_refused_at_construction(key, message):
  config = SamplerConfig()
  object.__setattr__(config, key, "karas")  # past the tests' checks of types
  with pytest.raises(ValueError, match=message):
    config.__post_init__()


@pytest.mark.parametrize(
  "name, expected",
  [
    ("ddim", ("ddim", None)),
    ("DDIMScheduler", ("ddim", None)),
    ("PNDMScheduler", ("plms", None)),
    ("EulerDiscreteScheduler", ("euler", None)),
    ("EulerAncestralDiscreteScheduler", ("euler_ancestral", None)),
    ("KDPM2AncestralDiscreteScheduler", ("dpm2_ancestral", None)),
    ("DPMSolverMultistepScheduler", ("dpmpp_2m", None)),
    ("DPMSolverSinglestepScheduler", ("dpmpp_2s", None)),
    ("UniPCMultistepScheduler", ("unipc", None)),
    ("Euler a", ("euler_ancestral", None)),
    ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
    ("dpm++ 2m sde karras", ("dpmpp_2m_sde", "karras")),
    ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
    ("LMS Karras", ("lms", "karras")),
    ("DPM2 a Karras", ("dpm2_ancestral", "karras")),
    ("dpm_2_ancestral", ("dpm2_ancestral", None)),
    ("uni_pc", ("unipc_bh1", None)),
    ("uni_pc_bh2", ("unipc_bh2", None)),
    ("uni_pc karras", ("unipc_bh1", "karras")),
    ("UniPC", ("unipc_bh1", None)),
    ("unipc", ("unipc", None)),
    ("DPM++ 2M Uniform", ("dpmpp_2m", "linspace")),
    ("DDIM Uniform", ("ddim", "leading")),
    ("euler ddim_uniform", ("euler", "ddim_uniform")),
    ("dpmpp_2m_beta", ("dpmpp_2m", "beta")),
    ("dpmpp_2m_sgm_uniform", ("dpmpp_2m", "sgm_uniform")),
    ("PLMS", ("plms", None)),
  ],
)
def test_names_of_samplers(name, expected):
  assert parse_sampler_name(name) == expected


def test_every_sampler_and_spacing_has_its_own_name():
  assert set(sampler_names()) == set(SAMPLERS)
  for name in SAMPLERS:
    assert parse_sampler_name(name) == (name, None)
    assert parse_sampler_name(f"{name} karras") == (name, "karras")
  for name in SPACING_NAMES:
    assert parse_timestep_spacing(name) == name
  assert parse_timestep_spacing("uniform") == "leading"
  assert parse_timestep_spacing("SGM Uniform") == "sgm_uniform"


@pytest.mark.parametrize("name", ["DPM quick", "eulr", "", "karras"])
def test_unknown_names_are_refused_with_a_list(name):
  with pytest.raises(ValueError, match="there are ddim, ddpm"):
    parse_sampler_name(name)


def test_the_gallerys_commands_are_valid():
  page = pathlib.Path(__file__).parent.parent / "docs" / "gallery.py"
  commands = runpy.run_path(str(page))["commands"]()
  assert len(commands) > 10
  for arguments in commands:
    assert arguments[:2] == ["ldm-jax", "sample"]
    flags, _ = parser().read(arguments[2:])
    resolve_sampler(request_of(flags), SamplerConfig()).plan(SCHEDULE)


LIKE_SD = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}


@pytest.mark.parametrize(
  "name, config, expected",
  [
    ("PNDMScheduler", {"skip_prk_steps": True}, ("plms", None, 0.0)),
    ("PNDMScheduler", {}, ("pndm_prk", None, 0.0)),
    ("DDIMScheduler", {}, ("ddim", None, 0.0)),
    (
      "EulerDiscreteScheduler",
      {"timestep_spacing": "leading"},
      ("euler", "leading", CLEAN_TIME),
    ),
    (
      "DPMSolverMultistepScheduler",
      {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
      ("dpmpp_2m_sde", "karras", CLEAN_TIME),
    ),
    (
      "DPMSolverSinglestepScheduler",
      {"solver_order": 3},
      ("dpmpp_3s", None, CLEAN_TIME),
    ),
    (
      "DPMSolverMultistepScheduler",
      {
        "use_lu_lambdas": True,
        "solver_order": 3,
        "timestep_spacing": "leading",
      },
      ("dpmpp_2m", "lu", CLEAN_TIME),
    ),
    (
      "UniPCMultistepScheduler",
      {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
      ("unipc_bh1", None, 0.0),
    ),
    (
      "LCMScheduler",
      {"timestep_spacing": "leading"},
      ("lcm", None, CLEAN_TIME),
    ),
  ],
)
def test_a_model_is_sampled_as_its_config_specifies(name, config, expected):
  found = sampler_config({"_class_name": name, **LIKE_SD, **config})
  assert (found.sampler, found.timestep_spacing, found.final_time) == expected
  assert found.steps_offset == 1
  found.plan(SCHEDULE)


PAGE = pathlib.Path(__file__).parent.parent / "docs" / "sampling.md"
TABLE = PAGE.read_text().split("## Names of other programs")[1].split("##")[0]
WORDS = re.findall(r"^\| [^|]+ \| `([^`]+)`[^|]*\| `(\w+)` \|", TABLE, re.M)


@pytest.mark.parametrize("word, expected", WORDS)
def test_words_of_other_programs_mean_what_the_table_says(word, expected):
  if expected in SAMPLERS:
    assert parse_sampler_name(word) == (expected, None)
  elif " " in word and word.split()[0].lower() in SAMPLERS:
    assert parse_sampler_name(word)[1] == expected
  else:
    assert parse_timestep_spacing(word) == expected


def test_the_table_has_the_words_that_differ():
  assert len(WORDS) == 18
  assert SAMPLERS["unipc_bh1"].default("order") == 3  # of both programs
  assert SAMPLERS["unipc_bh2"].default("order") == 3
  assert SAMPLERS["unipc"].default("order") == 2
