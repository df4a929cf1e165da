"""Every sampler, spacing and prediction compared with diffusers' schedulers.

Both have the same network, a mixture of Gaussians in closed form at the time
that the network is given, and the same noise. The schedulers' float32 tables of
sigmas are used in float64, so that only the algorithms differ.
"""

import sys

import numpy as np
import pytest
from sampler_rows import (
  MEANS,
  STD,
  WEIGHTS,
  follow,
  mixture,
  mixture_eps,
  solve,
)

from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.schedule import MIN_ALPHA_BAR, Schedule
from ldm_jax.pretrained.configs.scheduler_config import (
  sampler_config as read_config,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore"),  # a thousand of diffusers' own
]

SCHEDULE = Schedule()
STEPS = (1, 2, 5, 14, 15, 50)
BETAS = {
  "beta_start": SCHEDULE.start,
  "beta_end": SCHEDULE.end,
  "beta_schedule": "scaled_linear",
}
RNG = np.random.default_rng(0)
XT = RNG.standard_normal((2, 3, 4, 4))
NOISES = RNG.standard_normal((600, *XT.shape))
TIMED = ("leading", "trailing", "linspace")
SIGMAS = {
  "karras": "use_karras_sigmas",
  "exponential": "use_exponential_sigmas",
  "beta_sigmas": "use_beta_sigmas",
}


def network(x, time, kind, alpha_bar):
  """The exact output at the given time."""
  table = np.log(np.maximum(alpha_bar, MIN_ALPHA_BAR))
  log_alpha_bar = np.interp(time, np.arange(len(table)), table)
  signal, sigma = np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))
  variance = (signal * STD) ** 2 + sigma**2
  logits = np.log(WEIGHTS) - (x[..., None] - signal * MEANS) ** 2 / 2 / variance
  weight = np.exp(logits - logits.max(-1, keepdims=True))
  mean = (weight * MEANS).sum(-1) / weight.sum(-1)
  x0 = mean + signal * STD**2 / variance * (x - signal * mean)
  eps = (x - signal * x0) / sigma
  outputs = {"epsilon": eps, "sample": x0}
  return outputs.get(kind, signal * eps - sigma * x0)


def theirs(name, config, steps, kind, alpha_bar, options, monkeypatch):
  """The final x of diffusers' loop, and its number of network calls."""
  made = getattr(diffusers, name)(**BETAS, prediction_type=kind, **config)
  made.set_timesteps(steps)
  if isinstance(getattr(made, "sigmas", None), torch.Tensor):
    made.sigmas = made.sigmas.double()
  x = torch.from_numpy(XT) * made.init_noise_sigma
  for i, t in enumerate(made.timesteps):
    noise = torch.from_numpy(NOISES[i])
    module = sys.modules[type(made).__module__]
    if hasattr(module, "randn_tensor"):
      monkeypatch.setattr(module, "randn_tensor", lambda *_, n=noise, **__: n)
    scaled = made.scale_model_input(x, t).double().numpy()
    output = torch.from_numpy(network(scaled, float(t), kind, alpha_bar))
    x = made.step(output, t, x, **options).prev_sample.double()
  return x.numpy(), len(made.timesteps)


def ours(plan, kind, alpha_bar):
  """The final x of ours with the same network, and its network calls."""

  def denoise(x, level):
    output = network(x, level.time, kind, alpha_bar)
    signal, sigma = level.signal, level.sigma
    if kind == "epsilon":
      return (x - sigma * output) / signal, output
    if kind == "sample":
      return output, (x - signal * output) / sigma
    return signal * x - sigma * output, signal * output + sigma * x

  found = follow(plan.table, XT * plan.init_noise_sigma, denoise, NOISES)
  return found, len(plan.table.index)


def spacing_options(name, spacing):
  if name == "DPMSolverSinglestepScheduler" and spacing == "linspace":
    return {}  # it has no other
  return (
    {SIGMAS[spacing]: True}
    if spacing in SIGMAS
    else {"timestep_spacing": spacing}
  )


ALL = (*TIMED, *SIGMAS)
# (diffusers' class, sampler, spacings, diffusers' options, options here)
CASES = [
  ("DDIMScheduler", "ddim", TIMED, {"set_alpha_to_one": False}, {}),
  ("DDIMScheduler", "ddim", TIMED, {"set_alpha_to_one": True}, {"eta": 0.7}),
  ("DDPMScheduler", "ddpm", TIMED, {"clip_sample": False}, {}),
  ("PNDMScheduler", "plms", TIMED[:1], {"skip_prk_steps": True}, {}),
  ("PNDMScheduler", "pndm_prk", TIMED[:1], {"skip_prk_steps": False}, {}),
  ("EulerDiscreteScheduler", "euler", ALL, {}, {}),
  ("EulerAncestralDiscreteScheduler", "euler_ancestral", TIMED, {}, {}),
  ("HeunDiscreteScheduler", "heun", ALL, {}, {}),
  ("LMSDiscreteScheduler", "lms", ALL, {}, {}),
  ("KDPM2DiscreteScheduler", "dpm2", ALL, {}, {}),
  ("KDPM2AncestralDiscreteScheduler", "dpm2_ancestral", ALL, {}, {}),
  ("DPMSolverMultistepScheduler", "dpmpp_2m", ALL, {}, {}),
  (
    "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde",
    ALL,
    {"algorithm_type": "sde-dpmsolver++"},
    {},
  ),
  ("DPMSolverSinglestepScheduler", "dpmpp_2s", ALL[2:], {}, {}),
  (
    "DPMSolverSinglestepScheduler",
    "dpmpp_3s",
    ALL[2:],
    {"solver_order": 3},
    {},
  ),
  ("DEISMultistepScheduler", "deis", ALL, {"solver_order": 2}, {}),
  ("DEISMultistepScheduler", "deis", ALL, {"solver_order": 3}, {}),
  ("UniPCMultistepScheduler", "unipc", ALL, {"solver_order": 1}, {}),
  ("UniPCMultistepScheduler", "unipc", ALL, {"solver_order": 2}, {}),
  ("UniPCMultistepScheduler", "unipc", ALL, {"solver_order": 3}, {}),
  (
    "UniPCMultistepScheduler",
    "unipc_bh1",
    ALL,
    {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    {"final_time": 0.0},
  ),
  ("LCMScheduler", "lcm", [None], {}, {}),
  ("TCDScheduler", "tcd", [None], {}, {}),
  ("TCDScheduler", "tcd", [None], {}, {"eta": 0.8}),
]
FLAT = [
  pytest.param(
    name, sampler, spacing, config, options, id=f"{sampler}-{spacing}-{i}"
  )
  for i, (name, sampler, spacings, config, options) in enumerate(CASES)
  for spacing in spacings
]
# Samplers without x0-prediction in diffusers.
NO_SAMPLE = ("plms", "pndm_prk", "euler_ancestral", "dpm2", "dpm2_ancestral")


def defined(sampler, spacing, kind, steps):
  """Whether both define the same algorithm, and theirs runs."""
  if kind == "sample" and sampler in NO_SAMPLE:
    return False
  if sampler in ("plms", "pndm_prk") and kind == "v_prediction":
    # diffusers combines v of several times as if it were eps.
    return sampler == "plms" and steps == 1
  if sampler == "pndm_prk" and steps < 4:
    return False  # theirs fails
  if sampler == "dpm2_ancestral" and steps == 2:
    return False  # their float32 loses the small difference of two squares
  repeats = ("dpmpp", "deis", "unipc")
  # Theirs repeats a time there and fails.
  fails = (
    spacing == "beta_sigmas" and steps == 50 and sampler.startswith(repeats)
  )
  return not fails


@pytest.mark.parametrize("name, sampler, spacing, config, options", FLAT)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_schedulers(name, sampler, spacing, config, options, kind, monkeypatch):
  config = dict(config)
  if spacing is not None:
    config |= spacing_options(name, spacing)
  if "steps_offset" in getattr(diffusers, name)().config:
    config["steps_offset"] = 1
  if name in ("DDIMScheduler", "DDPMScheduler"):
    config["clip_sample"] = False
  # Read from diffusers' own config, as it is in a model's folder.
  written = {"_class_name": name, **BETAS, **config}
  sampler_config = read_config(written)
  assert sampler_config.sampler == sampler
  for steps in STEPS:
    if not defined(sampler, spacing, kind, steps):
      continue
    step_options = {k: v for k, v in options.items() if k == "eta"}
    same_config = SamplerConfig(
      **vars(sampler_config)
      | options
      | {"steps": steps, "compat": "diffusers", "timestep_spacing": spacing}
    )
    expected, calls = theirs(
      name, config, steps, kind, SCHEDULE.alpha_bar, step_options, monkeypatch
    )
    found, own_calls = ours(
      same_config.plan(SCHEDULE), kind, SCHEDULE.alpha_bar
    )
    assert own_calls == calls
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * scale, steps


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("is_clean", [True, False])
def test_inversion(kind, is_clean, monkeypatch):
  if is_clean and kind == "sample":
    pytest.skip("theirs divides by the noise of an image that has none")
  config = {
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": is_clean,
  }
  for steps in (1, 5, 50):
    sampler_config = SamplerConfig(
      steps, final_time=-1.0 if is_clean else 0.0, compat="diffusers"
    )
    table = SCHEDULE.alpha_bar
    expected, _ = theirs(
      "DDIMInverseScheduler", config, steps, kind, table, {}, monkeypatch
    )
    found, _ = ours(sampler_config.inversion(SCHEDULE), kind, table)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
  "name, sampler",
  [
    ("DDIMScheduler", "ddim"),
    ("EulerDiscreteScheduler", "euler"),
    ("DPMSolverMultistepScheduler", "dpmpp_2m"),
    ("UniPCMultistepScheduler", "unipc"),
  ],
)
def test_zero_terminal_snr(name, sampler, monkeypatch):
  schedule = Schedule(zero_terminal_snr=True)
  config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
  if name == "DDIMScheduler":
    config |= {"clip_sample": False}
  for steps in (1, 5, 20):
    sampler_config = SamplerConfig(
      steps, sampler, "trailing", compat="diffusers"
    )
    table = schedule.alpha_bar
    expected, _ = theirs(
      name, config, steps, "v_prediction", table, {}, monkeypatch
    )
    found, _ = ours(sampler_config.plan(schedule), "v_prediction", table)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_ddim_without_compat_is_more_accurate_than_diffusers(monkeypatch):
  """Except with leading spacing, diffusers' steps end at other times than those
  at which the network is evaluated next."""
  high, low = (SCHEDULE.level_at(t) for t in (999, 0))
  x = solve(XT / high.signal, high.ratio, low.ratio)
  true = x - low.ratio * mixture_eps(x, low.ratio)
  error = lambda found: np.sqrt(np.mean((found - true) ** 2))
  ours = follow(
    SamplerConfig(30, timestep_spacing="linspace").plan(SCHEDULE).table,
    XT,
    mixture,
  )
  config = {"timestep_spacing": "linspace", "clip_sample": False}
  their, _ = theirs(
    "DDIMScheduler", config, 600, "epsilon", SCHEDULE.alpha_bar, {}, monkeypatch
  )
  assert error(ours) < 0.5 * error(their)
