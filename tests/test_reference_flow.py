"""Flows against diffusers' FlowMatch schedulers: tables and whole loops."""

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
from sampler_rows import follow

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.scheduler_config import (
  sampler_config,
  schedule,
  schedule_config,
  unsupported_options,
)
from ldm_jax.pretrained.configs.scheduler_defaults import FLOW_SCHEDULERS
from ldm_jax.pretrained.flow_match.flow_scheduler import with_own_times

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
diffusers.utils.logging.set_verbosity_error()

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
STEPS = (1, 2, 4, 17, 28, 50)
FIXED = [
  {"shift": shift, **more}
  for shift in (1.0, 3.0, 0.7)
  for more in (
    {},
    *({key: True} for key in SPACED),
    {"shift_terminal": 0.1},
    {"shift_terminal": 0.02, "use_karras_sigmas": True},
    {"num_train_timesteps": 500},
  )
]
DYNAMIC = [
  {"use_dynamic_shifting": True, **more}
  for more in (
    {},
    {"time_shift_type": "linear"},
    {"base_shift": 0.9, "max_shift": 2.05, "base_image_seq_len": 1024},
    {"shift": 3.0, "shift_terminal": 0.1},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True, "time_shift_type": "linear"},
  )
]
LATENT_SIZES = [(32, 32), (64, 128), (128, 128), (256, 192)]


def flow_calculate_shift(config, tokens):
  """mu as their pipelines compute it."""
  from diffusers.pipelines.flux.pipeline_flux import calculate_shift

  names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
  return calculate_shift(tokens, *(config[name] for name in names))


def theirs(kind, options, steps, latent_size=None, is_flux=False):
  """Their scheduler after set_timesteps, as pipelines call it."""
  made = getattr(diffusers, kind)(**options)
  keys = {}
  if made.config.get("use_dynamic_shifting"):
    tokens = latent_size[0] * latent_size[1] // 4
    keys["mu"] = flow_calculate_shift(made.config, tokens)
  if is_flux:
    keys["sigmas"] = np.linspace(1.0, 1 / steps, steps)
  made.set_timesteps(None if is_flux else steps, **keys)
  return made


def ours(kind, options, steps, latent_size=None, is_flux=False, compat=None):
  """The plan of a config as it is in a model's folder."""
  config = {"_class_name": kind, **options}
  own = sampler_config(config)
  own = with_own_times(own) if is_flux else own
  own = dataclasses.replace(own, steps=steps, compat=compat)
  return own.plan(schedule(config)[0], latent_size=latent_size)


def check_levels(plan, made, steps, total):
  """Sigmas to 1e-6 and the network's times to float32."""
  level = plan.table.level
  sigmas = made.sigmas.numpy().astype(np.float64)
  np.testing.assert_allclose(level.flow_time, sigmas[:-1], atol=1e-6)
  end = plan.table.next_level.flow_time
  np.testing.assert_allclose(end, sigmas[1:], atol=1e-6)
  z = np.float32(level.time) + 1
  np.testing.assert_allclose(
    z, made.timesteps.numpy(), atol=1e-3 * total / 1000
  )
  np.testing.assert_allclose(level.signal**2 + level.sigma**2, 1, atol=1e-12)


@pytest.mark.parametrize("options", FIXED, ids=str)
def test_sigmas_of_a_fixed_shift(options):
  for steps in STEPS:
    if steps == 1 and "shift_terminal" in options:
      continue  # 0 / 0 there
    for compat in (None, "diffusers"):
      plan = ours(EULER, options, steps, compat=compat)
      made = theirs(EULER, options, steps)
      check_levels(plan, made, steps, options.get("num_train_timesteps", 1000))
    if set(options) == {"shift"}:
      plan = ours(EULER, options, steps, is_flux=True)
      made = theirs(EULER, options, steps, is_flux=True)
      check_levels(plan, made, steps, 1000)


@pytest.mark.parametrize("latent_size", LATENT_SIZES)
@pytest.mark.parametrize("options", DYNAMIC, ids=str)
def test_sigmas_of_a_shift_by_size(options, latent_size):
  for steps in (4, 28, 50):
    for is_flux in (False, True):
      arguments = options, steps, latent_size, is_flux
      plan, made = ours(EULER, *arguments), theirs(EULER, *arguments)
      check_levels(plan, made, steps, 1000)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_of_heun(shift):
  for steps in STEPS:
    for compat in (None, "diffusers"):
      plan = ours(HEUN, {"shift": shift}, steps, compat=compat)
      made = theirs(HEUN, {"shift": shift}, steps)
      evaluated = made.sigmas.numpy()[:-1].astype(np.float64)
      # Theirs has each inner level twice, where ours is evaluated twice.
      found = np.sort(plan.table.level.flow_time)[::-1]
      np.testing.assert_allclose(found, np.sort(evaluated)[::-1], atol=1e-6)


WEIGHTS = np.random.default_rng(2).standard_normal((3, 6, 6)) / 3


def velocity(z, timestep):
  """A small network: two layers with the time, in float64."""
  first, second, third = WEIGHTS
  hidden = np.tanh(z @ first + math.sin(timestep / 300))
  return hidden @ second + math.cos(timestep / 500) * np.tanh(z @ third)


def denoiser(total):
  """The same network as a backbone with `flow_steps` sees it."""

  def denoise(xt, level):
    s = (level.time + 1) / total
    z = xt * np.hypot(s, 1 - s)
    out = velocity(z, total * s)
    x0 = (xt - level.sigma * out) / (level.signal + level.sigma)
    return x0, x0 + out

  return denoise


LOOPS = [
  *((EULER, options, False) for options in FIXED),
  *((EULER, options, True) for options in DYNAMIC),
  *((HEUN, {"shift": shift}, False) for shift in (1.0, 3.0)),
]


@pytest.mark.parametrize("kind, options, is_flux", LOOPS, ids=str)
def test_whole_loops(kind, options, is_flux):
  noise = np.random.default_rng(0).standard_normal((4, 6))
  for steps in (2, 10, 28):
    arguments = kind, options, steps, (64, 64), is_flux
    made, sample = theirs(*arguments), torch.from_numpy(noise).double()
    for t in made.timesteps:
      out = torch.from_numpy(velocity(sample.numpy(), float(t)))
      sample = made.step(out, t, sample).prev_sample
    plan = ours(*arguments)
    assert plan.init_noise_sigma == 1
    total = options.get("num_train_timesteps", 1000)
    found = follow(plan.table, noise, denoiser(total))
    error = np.abs(found - sample.numpy()).max() / np.abs(found).max()
    assert error < 1e-5, (steps, error)


def test_stochastic_sampling(monkeypatch):
  """Noise of every step in turn, as theirs."""
  noises = np.random.default_rng(1).standard_normal((10, 4, 6))
  noise, options = noises[0], {"shift": 3.0, "stochastic_sampling": True}
  given = iter(noises[1:])
  module = inspect.getmodule(getattr(diffusers, EULER))
  take = lambda *_, **__: torch.from_numpy(next(given))
  monkeypatch.setattr(module, "randn_tensor", take)
  made, sample = theirs(EULER, options, 8), torch.from_numpy(noise)
  for t in made.timesteps:
    out = torch.from_numpy(velocity(sample.numpy(), float(t)))
    sample = made.step(out, t, sample).prev_sample
  found = follow(
    ours(EULER, options, 8).table, noise, denoiser(1000), noises[1:]
  )
  np.testing.assert_allclose(found, sample.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_keys_and_defaults_are_diffusers(name):
  parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
  found = {key: value.default for key, value in parameters.items()}
  del found["self"]
  assert found == FLOW_SCHEDULERS[name]


def test_configs_are_read_written_and_read_by_diffusers(tmp_path):
  for kind, options in ((EULER, DYNAMIC[2]), (HEUN, {"shift": 3.0})):
    getattr(diffusers, kind)(**options).save_pretrained(tmp_path / kind)
    file = tmp_path / kind / "scheduler_config.json"
    config = json.loads(file.read_text())
    assert unsupported_options(config) == ()
    written = schedule_config(*schedule(config), config)
    assert written == config
    again = getattr(diffusers, kind).from_config(written).config
    expected = {k: v for k, v in config.items() if not k.startswith("_")}
    assert expected.items() <= dict(again).items()


def test_what_diffusers_inverts_is_refused():
  with pytest.raises(ConfigError, match="invert_sigmas"):
    sampler_config({"_class_name": EULER, "invert_sigmas": True})
