"""Samplers by the identities that define them."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.prediction import Estimate
from ldm_jax.diffusion.samplers import Row, ddim, ddpm, rows, run, times
from ldm_jax.diffusion.schedule import Schedule, like, q_sample

SCHEDULE = Schedule()
SHAPE = (2, 4, 4, 3)
KEYS = samplers.image_keys(jax.random.key(0), jnp.arange(2))
X0, NOISE = jax.random.normal(jax.random.key(7), (2, *SHAPE))


def oracle(xt, t):
  """Knows x0, and infers the noise from what it sees."""
  signal, sigma = SCHEDULE.signal_and_sigma(t)
  return Estimate(X0, (xt - like(signal, xt) * X0) / like(sigma, xt))


@pytest.mark.parametrize("make", [ddim, ddpm])
@pytest.mark.parametrize("grid", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 1000])
def test_an_oracle_is_obeyed_for_any_number_of_steps(make, grid, steps):
  plan = rows(times(steps, grid))
  start = jnp.full((2,), plan.time[0], jnp.float32)
  xt = q_sample(SCHEDULE, X0, start, NOISE)
  x0 = run(make(SCHEDULE, 1.0), oracle, xt, plan, KEYS)
  np.testing.assert_allclose(x0, X0, atol=1e-5)


@pytest.mark.parametrize("grid", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_has_a_grid(grid):
  for steps in range(1, 1001):
    grid_times = times(steps, grid)
    assert len(grid_times) == steps
    assert grid_times[0] <= 999 and grid_times[-1] >= 0
    assert np.all(np.diff(grid_times) < 0)


def test_published_grids():
  # Steps 1, 21, ..., 981 of LDM's make_ddim_timesteps(50).
  np.testing.assert_array_equal(times(50, "leading"), np.arange(981, 0, -20))
  # 999, 979, ..., 19: trailing spacing, as Stability's sgm steps from 999.
  np.testing.assert_array_equal(times(50, "trailing"), np.arange(999, 0, -20))
  assert times(1000, "leading")[0] == 999 and times(1, "trailing")[0] == 999


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_step_counts_are_refused(steps):
  with pytest.raises(ValueError, match="between 1 and 1000"):
    times(steps, "leading")


def test_published_ddim_steps():
  """x = 1 and eps = .5 through LDM's DDIMSampler formulas, SD's schedule."""
  one = jnp.ones((1, 1))

  def denoise(xt, t):
    signal, sigma = SCHEDULE.signal_and_sigma(t)
    half = jnp.full_like(xt, 0.5)
    return Estimate((xt - sigma * half) / signal, half)

  def at(t, s, eta):
    row = Row(jnp.float32(t), jnp.float32(s), jnp.int32(0), jnp.bool_(True))
    return ddim(SCHEDULE, eta)(denoise, one, row, jnp.zeros((1, 1)))[0, 0]

  np.testing.assert_allclose(
    denoise(one, 981.0 * one[0, 0]).x0, 6.598259, rtol=1e-5
  )
  np.testing.assert_allclose(at(981, 961, 0.0), 1.061226, rtol=1e-5)
  np.testing.assert_allclose(at(981, 961, 1.0), 1.006384, rtol=1e-5)
  np.testing.assert_allclose(at(1, 0, 0.0), 0.994357, rtol=1e-5)


def test_ancestral_sampling_is_ddim_with_eta_one():
  plan = rows(times(40, "trailing"))
  denoise = lambda xt, t: Estimate(jnp.tanh(xt), xt - jnp.sin(xt))

  def consistent(xt, t):
    x0 = denoise(xt, t).x0
    signal, sigma = SCHEDULE.signal_and_sigma(t)
    return Estimate(x0, (xt - signal * x0) / sigma)

  a = run(ddpm(SCHEDULE), consistent, NOISE, plan, KEYS)
  b = run(ddim(SCHEDULE, 1.0), consistent, NOISE, plan, KEYS)
  np.testing.assert_allclose(a, b, atol=2e-4)


def test_ancestral_sampling_keeps_a_gaussian():
  """Exact denoiser of N(0.5, 0.3^2): 2,000 samples have those moments."""
  std, mean = 0.3, 0.5

  def exact(xt, t):
    signal, sigma = SCHEDULE.signal_and_sigma(t)
    gain = signal * std**2 / ((signal * std) ** 2 + sigma**2)
    x0 = mean + gain * (xt - signal * mean)
    return Estimate(x0, (xt - signal * x0) / sigma)

  keys = samplers.image_keys(jax.random.key(1), jnp.arange(2000))
  xt = samplers.initial_noise(keys, (4,))
  x0 = run(ddpm(SCHEDULE), exact, xt, rows(times(1000, "leading")), keys)
  assert abs(float(x0.mean()) - mean) < 4.5 * std / 8000**0.5
  assert abs(float(x0.std()) / std - 1) < 0.03


def test_chunks_give_the_same_images_as_one_scan():
  plan = rows(times(23, "trailing"))
  denoise = lambda xt, t: Estimate(jnp.tanh(xt), jnp.sin(xt))
  whole = run(ddim(SCHEDULE, 0.7), denoise, NOISE, plan, KEYS)
  xt, lengths = NOISE, []
  for piece in samplers.chunks(plan, 10):
    lengths.append(len(piece.time))
    xt = run(ddim(SCHEDULE, 0.7), denoise, xt, piece, KEYS)
  assert lengths == [10, 10, 10]
  np.testing.assert_allclose(xt, whole, atol=1e-6)


def test_the_number_of_steps_never_recompiles():
  traces = []

  @jax.jit
  def sample_chunk(xt, piece, eta, keys):
    traces.append(1)
    denoise = lambda xt, t: Estimate(jnp.tanh(xt), jnp.sin(xt))
    return run(ddim(SCHEDULE, eta), denoise, xt, piece, keys)

  for steps, eta in [(1, 0.0), (20, 0.5), (37, 1.0)]:
    xt = NOISE
    for piece in samplers.chunks(rows(times(steps, "leading"))):
      xt = sample_chunk(xt, piece, eta, KEYS)
  assert len(traces) == 1


def test_an_image_depends_on_its_index_and_not_on_its_batch():
  many = samplers.image_keys(jax.random.key(5), jnp.arange(16))
  alone = samplers.image_keys(jax.random.key(5), jnp.array([11]))
  plan = rows(times(5, "leading"))
  denoise = lambda xt, t: Estimate(jnp.tanh(xt), jnp.sin(xt))
  step = ddim(SCHEDULE, 1.0)
  a = run(step, denoise, samplers.initial_noise(many, (8,)), plan, many)
  b = run(step, denoise, samplers.initial_noise(alone, (8,)), plan, alone)
  np.testing.assert_allclose(a[11], b[0], atol=1e-6)


ORDER = """
import json, jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.prediction import Estimate
from ldm_jax.diffusion.schedule import Schedule

schedule = Schedule()
MEANS, STD = np.array([-1.5, 0.3, 1.1]), 0.5
WEIGHTS = np.array([0.3, 0.5, 0.2])


def eps_of(x, sigma, xp):
  "Noise expected in x = x0 + sigma eps for the mixture, in closed form."
  variance = STD**2 + sigma**2
  logits = xp.log(WEIGHTS) - (x[..., None] - MEANS) ** 2 / (2 * variance)
  share = xp.exp(logits - logits.max(-1, keepdims=True))
  share = share / share.sum(-1, keepdims=True)
  return sigma * (share * (x[..., None] - MEANS)).sum(-1) / variance


def denoise(xt, t):
  signal, sigma = schedule.signal_and_sigma(t)
  eps = eps_of(xt / signal, sigma / signal, jnp)
  return Estimate((xt - sigma * eps) / signal, eps)


x_T = np.linspace(-2.0, 2.0, 41)[None]
ab = schedule.alpha_bar
high, low = (np.sqrt((1 - a) / a) for a in (ab[-1], ab[0]))

# Reference: dx / d sigma = eps by classical Runge-Kutta in log sigma.
x, logs = x_T / np.sqrt(ab[-1]), np.linspace(np.log(high), np.log(low), 20001)
f = lambda x, s: np.exp(s) * eps_of(x, np.exp(s), np)
for s, r in zip(logs[:-1], logs[1:]):
  h = r - s
  a = f(x, s); b = f(x + h/2*a, s + h/2)
  c = f(x + h/2*b, s + h/2); d = f(x + h*c, r)
  x = x + h / 6 * (a + 2*b + 2*c + d)
reference = x - low * eps_of(x, low, np)

errors = []
for steps in (20, 40, 80, 160, 320, 640):
  plan = samplers.rows(samplers.times(steps, "linspace"))
  keys = samplers.image_keys(jax.random.key(0), jnp.arange(1))
  step = samplers.ddim(schedule)
  out = samplers.run(step, denoise, jnp.asarray(x_T), plan, keys)
  assert out.dtype == jnp.float64
  errors.append(float(np.sqrt(np.mean((np.asarray(out) - reference) ** 2))))
print(json.dumps(errors))
"""


def test_ddim_converges_with_order_one():
  """On a Gaussian mixture, float64: halving the step halves the error."""
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
  done = subprocess.run(
    [sys.executable, "-c", ORDER], capture_output=True, text=True, env=env
  )
  assert done.returncode == 0, done.stderr
  errors = np.array(json.loads(done.stdout.splitlines()[-1]))
  steps = np.array([20, 40, 80, 160, 320, 640])
  slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
  assert abs(-slope - 1) < 0.05, (slope, errors)
