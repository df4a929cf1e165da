"""What other programs' words for samplers and schedules mean here.

Names as those programs list them: ComfyUI (comfy/samplers.py, 0.3.64),
AUTOMATIC1111's web UI (modules/sd_samplers_kdiffusion.py and sd_schedulers.py,
1.10.1), sd-scripts (--sample_sampler of library/train_util.py), k-diffusion
(functions of sampling.py) and InvokeAI (SCHEDULER_MAP of schedulers.py).
"""

import math

import numpy as np
import pytest

from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.samplers.sampler_names import (
  SPACING_NAMES,
  parse_sampler_name,
  parse_timestep_spacing,
)
from ldm_jax.diffusion.schedule import Schedule

KARRAS = "karras"
NAMES = {
  "ComfyUI": {
    "euler": "euler",
    "euler_ancestral": "euler_ancestral",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_ancestral",
    "lms": "lms",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "deis": "deis",
    "ddim": "ddim",
    "uni_pc": "unipc_bh1",
    "uni_pc_bh2": "unipc_bh2",
  },
  "A1111": {
    "Euler a": "euler_ancestral",
    "k_euler_a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm2",
    "DPM2 a": "dpm2_ancestral",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M Karras": ("dpmpp_2m", KARRAS),
    "k_dpmpp_2m_ka": ("dpmpp_2m", KARRAS),
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "unipc_bh1",
    "LCM": "lcm",
  },
  "sd-scripts": {
    "ddim": "ddim",
    "pndm": "plms",
    "lms": "lms",
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_a": "dpm2_ancestral",
    "dpmsolver++": "dpmpp_2m",
    "dpmsingle": "dpmpp_2s",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_dpm_2": "dpm2",
    "k_dpm_2_a": "dpm2_ancestral",
  },
  "k-diffusion": {
    "sample_euler": "euler",
    "sample_euler_ancestral": "euler_ancestral",
    "sample_heun": "heun",
    "sample_lms": "lms",
    "sample_dpm_2": "dpm2",
    "sample_dpm_2_ancestral": "dpm2_ancestral",
    "sample_dpmpp_2m": "dpmpp_2m",
    "sample_dpmpp_2m_sde": "dpmpp_2m_sde",
  },
  "InvokeAI": {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deis": "deis",
    "lms_k": ("lms", KARRAS),
    "pndm": "plms",
    "heun_k": ("heun", KARRAS),
    "euler_k": ("euler", KARRAS),
    "euler_a": "euler_ancestral",
    "kdpm_2": "dpm2",
    "kdpm_2_k": ("dpm2", KARRAS),
    "kdpm_2_a": "dpm2_ancestral",
    "kdpm_2_a_k": ("dpm2_ancestral", KARRAS),
    "dpmpp_2s": "dpmpp_2s",
    "dpmpp_2m_k": ("dpmpp_2m", KARRAS),
    "dpmpp_2m_sde_k": ("dpmpp_2m_sde", KARRAS),
    "unipc": "unipc",
    "unipc_k": ("unipc", KARRAS),
    "lcm": "lcm",
    "tcd": "tcd",
  },
  "diffusers": {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "TCDScheduler": "tcd",
  },
}
NOT_IMPLEMENTED = {
  "ComfyUI": (
    *("euler_cfg_pp", "euler_ancestral_cfg_pp", "heunpp2", "dpm_fast"),
    *("dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
    *("dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde_heun"),
    *("dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ipndm"),
    *("ipndm_v", "res_multistep", "res_multistep_cfg_pp", "er_sde"),
    *("res_multistep_ancestral", "res_multistep_ancestral_cfg_pp"),
    *("gradient_estimation", "gradient_estimation_cfg_pp", "seeds_2"),
    *("seeds_3", "sa_solver", "sa_solver_pece"),
  ),
  "A1111": (
    *("DPM++ 2S a", "DPM++ SDE", "DPM++ SDE Karras", "DPM++ 2M SDE Heun"),
    *("DPM++ 2M SDE Heun Exponential", "DPM++ 3M SDE Karras", "DPM fast"),
    *("DPM adaptive", "Restart", "DDIM CFG++", "k_dpmpp_2s_a_ka"),
  ),
  "sd-scripts": ("dpmsolver",),
  "k-diffusion": (
    *("sample_dpm_fast", "sample_dpm_adaptive", "sample_dpmpp_sde"),
    *("sample_dpmpp_2s_ancestral", "sample_dpmpp_3m_sde"),
  ),
  "InvokeAI": ("dpmpp_3m", "dpmpp_3m_k", "dpmpp_sde", "dpmpp_sde_k"),
  "diffusers": (
    *("DPMSolverSDEScheduler", "EDMEulerScheduler", "IPNDMScheduler"),
    *("EDMDPMSolverMultistepScheduler", "SASolverScheduler"),
    "FlowMatchLCMScheduler",
    *("CosineDPMSolverMultistepScheduler", "DDIMParallelScheduler"),
  ),
}
SCHEDULES = {
  "normal": "linspace",
  "karras": "karras",
  "exponential": "exponential",
  "sgm_uniform": "sgm_uniform",
  "simple": "simple",
  "ddim_uniform": "ddim_uniform",
  "beta": "beta",
  "kl_optimal": "kl_optimal",
  "SGM Uniform": "sgm_uniform",
  "Polyexponential": "exponential",
  "KL Optimal": "kl_optimal",
  "Simple": "simple",
  "Normal": "linspace",
}


@pytest.mark.parametrize(
  "program, name, own",
  [(p, n, own) for p, names in NAMES.items() for n, own in names.items()],
)
def test_a_name_is_the_sampler_it_is_there(program, name, own):
  pair = own if isinstance(own, tuple) else (own, None)
  assert parse_sampler_name(name) == pair and pair[0] in SAMPLERS


@pytest.mark.parametrize(
  "program, name", [(p, n) for p, ns in NOT_IMPLEMENTED.items() for n in ns]
)
def test_what_is_not_implemented_names_the_nearest(program, name):
  with pytest.raises(ValueError, match="is not implemented") as error:
    parse_sampler_name(name)
  text = str(error.value)
  assert repr(name) in text and "\n" not in text
  assert text.rpartition(" ")[2] in SAMPLERS


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_the_one_it_is_there(name):
  assert parse_timestep_spacing(name) == SCHEDULES[name]


@pytest.mark.parametrize(
  "name", ["linear_quadratic", "Align Your Steps", "Automatic", "Turbo"]
)
def test_a_schedule_that_is_not_implemented_names_the_nearest(name):
  with pytest.raises(ValueError, match="is not implemented") as error:
    parse_timestep_spacing(name)
  assert str(error.value).rpartition(" ")[2] in SPACING_NAMES


def comfy_sigmas(name, n):
  """sigma / signal of Stable Diffusion's steps, by ComfyUI's definitions."""
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  alphas = np.cumprod(1 - betas)
  table = np.sqrt((1 - alphas) / alphas)
  at = lambda t: np.exp(np.interp(t, np.arange(1000), np.log(table)))
  low, high = table[[0, -1]]
  ramp = np.linspace(0, 1, n)
  if name == "normal":
    return at(np.linspace(999, 0, n))
  if name == "sgm_uniform":
    return at(np.linspace(999, 0, n + 1)[:-1])
  if name == "karras":
    root = lambda x: x ** (1 / 7)
    return (root(high) + ramp * (root(low) - root(high))) ** 7
  if name == "exponential":
    return np.exp(np.linspace(math.log(high), math.log(low), n))
  if name == "simple":
    return table[[-(1 + int(i * 1000 / n)) for i in range(n)]]
  if name == "ddim_uniform":
    return table[1 :: max(1000 // n, 1)][::-1]
  if name == "kl_optimal":
    return np.tan(ramp * math.atan(low) + (1 - ramp) * math.atan(high))
  from scipy import stats

  quantiles = stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6)
  times = np.rint(quantiles * 999).astype(int)
  return table[times[np.r_[True, np.diff(times) != 0]]]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 10, 20, 25, 30, 50, 100, 400])
@pytest.mark.parametrize("name", [
  "normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform",
  "beta", "kl_optimal",
])  # fmt: skip
def test_sigmas_are_comfyuis(name, n):
  config = SamplerConfig(n, "euler", parse_timestep_spacing(name, "euler"))
  levels = config.noise_levels(Schedule()).levels
  found = np.array([level.sigma / level.signal for level in levels])
  # Between whole times ComfyUI interpolates ln sigma, and we ln alpha-bar.
  times = np.array([float(level.time) for level in levels])
  is_between = (times % 1 > 0) & (name in ("normal", "sgm_uniform"))
  limits = np.where(is_between, np.where(times < 50, 6e-3, 4e-5), 2e-6)
  assert np.all(np.abs(found / comfy_sigmas(name, n) - 1) < limits)
