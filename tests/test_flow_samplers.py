"""Sampling of rectified flows: exact levels, shifts, orders of convergence."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_rows import LINE, follow

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.samplers.flow_levels import flow_times
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.samplers.timesteps import SPACINGS
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.diffusion.shift import DynamicShift, ResolutionShift, shift_time
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.request import GenerationRequest

FLOW = Schedule("rectified_flow")
MEAN, STD = 0.5, 0.3
NAMES = sorted({*SAMPLERS} - {"unipc_bh2"})


def exact(xt, level):
  """(x0, eps) of N(0.5, 0.3^2)."""
  variance = (level.signal * STD) ** 2 + level.sigma**2
  gain = level.signal * STD**2 / variance
  x0 = MEAN + gain * (xt - level.signal * MEAN)
  eps = level.sigma / variance * (xt - level.signal * MEAN)
  return x0, eps


def error(config, noise=LINE):
  """Of the result from pure noise; x0 = MEAN + STD x_T on the exact path."""
  table = config.plan(FLOW).table
  return np.abs(follow(table, noise, exact) - (MEAN + STD * noise)).max()


@pytest.mark.parametrize("steps", [7, 1000])
def test_levels_between_whole_times_are_the_straight_line(steps):
  schedule = Schedule("rectified_flow", steps=steps)
  s = np.concatenate([np.linspace(0, 1, 400), [1e-5, 0.3 / steps, 1 - 1e-5]])
  t = steps * s - 1
  deviation = np.hypot(1 - s, s)
  levels = [schedule.level_at(each) for each in t]
  on_device = schedule.level(jnp.asarray(t, jnp.float32))
  for found, atol in ((levels, 1e-12), (None, 2e-7)):
    signal, sigma, time = (
      np.array([getattr(level, name) for level in levels])
      if found
      else np.asarray(getattr(on_device, name))
      for name in ("signal", "sigma", "time")
    )
    np.testing.assert_allclose(signal, (1 - s) / deviation, atol=atol)
    np.testing.assert_allclose(sigma, s / deviation, atol=atol)
    np.testing.assert_allclose((time + 1) / steps, s, atol=atol)
  for level, each in zip(levels[:-1:7], s[:-1:7], strict=True):
    assert math.isclose(level.flow_time, each, abs_tol=1e-12)
    back = schedule.level_of_ratio(level.ratio) if each < 1 else level
    assert math.isclose(back.time, level.time, abs_tol=1e-9)


def test_a_network_of_1000_steps_is_given_1000_s():
  """In float32, from the level's time, as backbones compute it."""
  config = SamplerConfig(28, "euler", "linspace", shift=3.0)
  table = config.plan(FLOW).table
  t = jnp.asarray(table.level.time, jnp.float32)
  s = flow_times(28, "linspace", 3.0)
  np.testing.assert_allclose((t + 1) / 1000, s, atol=1e-7)


def test_times_of_the_published_models():
  """Of SD3, shift 3, and of FLUX at 1024 x 1024 pixels, in closed form."""
  sd3 = flow_times(28, "linspace", 3.0)
  last = 3 * 0.001 / 1.002
  even = 1 - np.arange(28) / 27 * (1 - last)
  np.testing.assert_allclose(sd3, 3 * even / (1 + 2 * even), rtol=1e-12)
  flux = flow_times(50, "trailing", DynamicShift(), latent_size=(128, 128))
  even, a = 1 - np.arange(50) / 50, math.exp(1.15)
  np.testing.assert_allclose(flux, a / (a + 1 / even - 1), rtol=1e-12)
  schnell = flow_times(4, "trailing")
  np.testing.assert_allclose(schnell, [1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("spacing", [s for s in SPACINGS if s != "lu"])
def test_every_spacing_starts_at_noise_or_falls_to_the_image(spacing):
  for shift in (0.5, 1.0, 3.0):
    for steps in (1, 2, 9, 40):
      s = flow_times(steps, spacing, shift)
      assert 0 < s[-1] <= s[0] <= 1 and np.all(np.diff(s) < 0)
  if spacing not in ("leading", "quadratic", "ddim_uniform"):
    assert math.isclose(s[0], 1)


def test_the_terminal_time_is_reached_and_even_times_stay_even():
  s = flow_times(10, "trailing", terminal=0.1)
  np.testing.assert_allclose(s, np.linspace(1, 0.1, 10))
  shifted = flow_times(10, "trailing", 2.0, terminal=0.02)
  assert shifted[0] == 1 and math.isclose(shifted[-1], 0.02)
  stretched = (1 - shifted) / (1 - flow_times(10, "trailing", 2.0) + 1e-300)
  np.testing.assert_allclose(stretched[1:], stretched[-1])
  for terminal in (0.0, 1.0, -0.1):
    with pytest.raises(ValueError, match="shift_terminal"):
      SamplerConfig(shift_terminal=terminal)


@pytest.mark.parametrize("name", NAMES)
def test_with_an_oracle_every_sampler_returns_x0(name):
  x0, noise = np.random.default_rng(0).standard_normal((2, 5))
  noises = np.random.default_rng(1).standard_normal((100, 5))
  oracle = lambda xt, level: (x0, (xt - level.signal * x0) / level.sigma)
  for spacing in ("trailing", "linspace", "karras", "exponential", "beta"):
    for steps in (1, 2, 3, 7, 16):
      config = SamplerConfig(steps, name, spacing, shift=3.0)
      found = follow(config.plan(FLOW).table, noise, oracle, noises)
      np.testing.assert_allclose(found, x0, atol=1e-5, err_msg=spacing)


# From pure noise, along even times: the exact result is MEAN + STD x_T.
ORDERS = [
  (SamplerConfig(sampler="euler"), 1),
  (SamplerConfig(sampler="euler", shift=3.0), 1),
  (SamplerConfig(sampler="ddim", timestep_spacing="trailing"), 1),
  (SamplerConfig(sampler="heun"), 2),
  (SamplerConfig(sampler="heun", shift=3.0), 2),
  (SamplerConfig(sampler="lms", order=1), 1),
  (SamplerConfig(sampler="lms", order=2), 2),
  (SamplerConfig(sampler="lms", order=2, shift=3.0), 2),
]


@pytest.mark.parametrize("config, order", ORDERS)
def test_orders_from_pure_noise_to_the_image(config, order):
  """Those that follow dz/ds, whose slope is smooth at both ends."""
  counts = (100, 200, 400, 800)
  errors = [error(dataclasses.replace(config, steps=n)) for n in counts]
  slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert abs(slope - order) < 0.15, (slope, errors)


BETWEEN = [
  (SamplerConfig(sampler="dpm2"), 2),
  (SamplerConfig(sampler="dpmpp_2m"), 2),
  (SamplerConfig(sampler="dpmpp_2m", options=SolverOptions(False)), 2),
  (SamplerConfig(sampler="dpmpp_2s"), 2),
  (SamplerConfig(sampler="dpmpp_3s"), 3),
  (SamplerConfig(sampler="deis", order=2), 2),
  (SamplerConfig(sampler="unipc", order=1), 2),
  (SamplerConfig(sampler="unipc", order=2), 3),
  (SamplerConfig(sampler="unipc_bh1", order=2), 3),
]


@pytest.mark.parametrize("config, order", BETWEEN)
def test_orders_between_two_times(config, order):
  """From s = 0.9 to 0.1, and E[x0 | x] there, which is the last step's."""
  first, last = 0.9, 0.1
  begin, end = (FLOW.level_at(1000 * s - 1) for s in (first, last))
  deviation = lambda level: np.hypot(level.signal * STD, level.sigma)
  unit = LINE / deviation(begin)
  x_end = end.signal * MEAN + deviation(end) * unit
  expected, _ = exact(x_end, end)
  start = begin.signal * MEAN + LINE
  errors, counts = [], (82, 160, 322, 640)  # 1 more than thirds
  for count in counts:
    times = tuple(np.linspace(first, last, count))
    table = dataclasses.replace(config, sigmas=times).plan(FLOW).table
    errors.append(np.abs(follow(table, start, exact) - expected).max())
  slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert abs(slope - order) < 0.2, (slope, errors)


@pytest.mark.parametrize(
  "name", [n for n in NAMES if not SamplerConfig(sampler=n).is_random]
)
def test_every_solver_converges_from_pure_noise(name):
  """Those in ln SNR begin at a floor of the signal, which is 2e-4."""
  config = SamplerConfig(10, name, "trailing", shift=3.0)
  few, many = (
    error(dataclasses.replace(config, steps=steps)) for steps in (10, 160)
  )
  assert many < 5e-3 + 2e-2 * (name in ("euler", "ddim"))
  assert many < few / 8


@pytest.mark.parametrize(
  "name, eta",
  [
    ("euler_ancestral", None),
    ("ddpm", None),
    ("ddim", 1.0),
    ("dpm2_ancestral", None),
    ("dpmpp_2m_sde", None),
    ("lcm", None),
    ("tcd", None),
  ],
)
def test_stochastic_samplers_have_the_moments_of_the_data(name, eta):
  """Everything is linear: unit vectors give mean and deviation exactly."""
  spacing = None if name in ("lcm", "tcd") else "trailing"
  steps = 50 if name in ("lcm", "tcd") else 200
  table = SamplerConfig(steps, name, spacing, eta=eta).plan(FLOW).table
  rows = len(table.index)
  columns = np.zeros((rows, rows + 2))
  columns[:, 2:] = np.eye(rows)
  start = np.zeros(rows + 2)
  start[1] = 1.0
  result = follow(table, start, exact, columns)
  mean = result[0]
  spread = np.sqrt(np.sum((result[1:] - mean) ** 2))
  assert abs(mean - MEAN) < 0.01
  # LCM begins anew from E[x0 | x], which is narrower, at every level.
  bound = {"lcm": 0.12, "tcd": 0.05}.get(name, 0.02)
  assert STD - bound < spread < STD + 0.02, spread


def test_the_scan_in_float32_is_the_rows_in_float64():
  config = SamplerConfig(12, "heun", "linspace", shift=3.0)
  table = config.plan(FLOW).table
  keys = samplers.image_keys(jax.random.key(0), jnp.arange(1))
  noise = jnp.asarray(LINE[None], jnp.float32)
  found = jax.jit(lambda x: samplers.sample(exact_on_device, x, table, keys))
  expected = follow(table, LINE, exact)
  np.testing.assert_allclose(found(noise)[0], expected, atol=2e-6)


def exact_on_device(xt, level):
  return tuple(jnp.asarray(each) for each in exact(xt, level))


def test_the_size_is_needed_by_a_shift_that_depends_on_it():
  config = SamplerConfig(4, "euler", shift=DynamicShift())
  with pytest.raises(ValueError, match="size of the latents"):
    config.plan(FLOW)
  found = config.plan(FLOW, latent_size=(128, 128)).table.level.flow_time
  even = np.array([1, 0.75, 0.5, 0.25])
  np.testing.assert_allclose(found, shift_time(even, math.exp(1.15)))
  larger = config.plan(FLOW, latent_size=(32, 32)).table.level.flow_time
  assert np.all(larger[1:] < found[1:])
  scaled = dataclasses.replace(config, shift=ResolutionShift(1024))
  levels = scaled.noise_levels(FLOW, (128, 128)).levels
  assert math.isclose(levels[1].flow_time, 2 * 0.75 / 1.75)


def test_given_times_and_sigmas_are_taken_as_they_are():
  config = SamplerConfig(sampler="euler", sigmas=(1.0, 0.6, 0.1), shift=3.0)
  levels = config.noise_levels(FLOW).levels
  np.testing.assert_allclose([x.flow_time for x in levels], [1, 0.6, 0.1])
  config = SamplerConfig(sampler="euler", times=(999, 599, -0.5))
  levels = config.noise_levels(FLOW).levels
  np.testing.assert_allclose([x.flow_time for x in levels], [1, 0.6, 5e-4])


@pytest.mark.parametrize(
  "config, words",
  [
    (SamplerConfig(sampler="euler", sigmas=(1.2, 0.5)), "at most 1"),
    (SamplerConfig(sampler="euler", sigmas=(0.5, 0.0)), "above 0"),
    (SamplerConfig(5, "euler", "lu"), "use exponential"),
    (SamplerConfig(2000, "euler"), "between 1 and 1000"),
    (SamplerConfig(5, "dpmpp_2m", compat="diffusers"), "leave compat out"),
    (
      SamplerConfig(5, "heun", options=SolverOptions(sigma_min=0.1)),
      "sigma_min is not of flow",
    ),
  ],
)
def test_what_flows_have_not_is_refused(config, words):
  with pytest.raises(ValueError, match=words) as refused:
    config.plan(FLOW)
  assert "\n" not in str(refused.value)


def test_other_schedules_have_no_shift():
  for config in (SamplerConfig(shift=3.0), SamplerConfig(shift_terminal=0.1)):
    with pytest.raises(ValueError, match="rectified flows"):
      config.plan(Schedule())


@pytest.mark.parametrize(
  "explicit", [{"times": (900, 500)}, {"sigmas": (1.0,)}]
)
def test_a_shift_with_explicit_times_is_refused(explicit):
  with pytest.raises(ConfigError, match="leave shift out"):
    GenerationRequest(shift=3.0, **explicit)
  assert GenerationRequest(**explicit).shift is None
