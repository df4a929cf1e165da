"""Densities of training times against their closed forms, in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import stats

from ldm_jax import config_json
from ldm_jax.diffusion.loss import DenoisingLoss, sample_times
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.diffusion.shift import (
  DynamicShift,
  ResolutionShift,
  resolved_shift,
  shift_time,
)
from ldm_jax.diffusion.time_densities import (
  MOST_TAILED,
  CosMapTimes,
  LogitNormalTimes,
  ModeTimes,
  UniformTimes,
  draw_times,
)
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.training.denoiser import DenoiserTask

FLOW = Schedule("rectified_flow")
GRID = np.linspace(0, 1, 2001)[1:-1]


def quantiles(density, u=GRID):
  """In float64."""
  with jax.enable_x64(True):
    return np.asarray(density.from_uniform(jnp.asarray(u, jnp.float64)))


def logit_normal(s, location, scale):
  """pi_ln of Esser et al. 2024, eq. 19."""
  logit = np.log(s / (1 - s))
  bell = np.exp(-((logit - location) ** 2) / (2 * scale**2))
  return bell / (scale * math.sqrt(2 * math.pi) * s * (1 - s))


def cosmap(s):
  """pi_CosMap of their eq. 21."""
  return 2 / (math.pi - 2 * math.pi * s + 2 * math.pi * s**2)


@pytest.mark.parametrize(
  "density, pdf",
  [
    (UniformTimes(), np.ones_like),
    (LogitNormalTimes(), lambda s: logit_normal(s, 0, 1)),
    (LogitNormalTimes(-0.5, 0.6), lambda s: logit_normal(s, -0.5, 0.6)),
    (LogitNormalTimes(1.0, 0.6), lambda s: logit_normal(s, 1.0, 0.6)),
    (CosMapTimes(), cosmap),
  ],
)
def test_the_quantiles_have_the_published_density(density, pdf):
  """d s / d u = 1 / pdf(s), by central differences."""
  step = 1e-6
  u = np.linspace(0.02, 0.98, 97)
  high, low = quantiles(density, u + step), quantiles(density, u - step)
  slope = (high - low) / (2 * step)
  np.testing.assert_allclose(slope * pdf(quantiles(density, u)), 1, rtol=1e-7)


def test_the_logit_normal_has_the_quantiles_of_a_normal():
  expected = 1 / (1 + np.exp(-(0.3 + 0.8 * stats.norm.ppf(GRID))))
  found = quantiles(LogitNormalTimes(0.3, 0.8))
  np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [-1.0, -0.4, 0.0, 0.81, 1.29, MOST_TAILED])
def test_mode_sampling_is_a_fall_from_1_to_0_with_the_given_curve(scale):
  """1 - u - a (cos^2(pi u / 2) - 1 + u); cos^2 written by the double angle."""
  u = np.linspace(0, 1, 4001)
  s = quantiles(ModeTimes(scale), u)
  half = (1 + np.cos(math.pi * u)) / 2
  np.testing.assert_allclose(s, 1 - u - scale * (half - 1 + u), atol=1e-12)
  assert np.all(np.diff(s) <= 1e-12) and s[0] == 1 and s[-1] == 0
  # Symmetric, and the density at the middle is 1 / |d s / d u|.
  np.testing.assert_allclose(s + s[::-1], 1, atol=1e-12)
  middle = (s[1999] - s[2001]) / (u[2001] - u[1999])
  expected = 1 - scale * (math.pi / 2 - 1)
  np.testing.assert_allclose(middle, expected, atol=1e-5)


def test_a_mode_beyond_its_bound_is_refused():
  for scale in (-1.01, MOST_TAILED + 0.01, math.nan):
    with pytest.raises(ValueError, match=r"-1 to 1\.75"):
      ModeTimes(scale)
  with pytest.raises(ValueError, match="above 0"):
    LogitNormalTimes(scale=0.0)
  for shift in (0.0, -1.0, math.inf, math.nan):
    with pytest.raises(ValueError, match="shift"):
      LogitNormalTimes(shift=shift)


@pytest.mark.parametrize(
  "density, cdf",
  [
    (UniformTimes(), lambda s: s),
    (LogitNormalTimes(), lambda s: stats.norm.cdf(np.log(s / (1 - s)))),
    (CosMapTimes(), lambda s: 2 / np.pi * np.arctan(s / (1 - s))),
    (
      LogitNormalTimes(shift=3.0),
      lambda s: stats.norm.cdf(np.log(s / (1 - s)) - math.log(3)),
    ),
  ],
)
def test_draws_have_the_distribution(density, cdf):
  """Kolmogorov's distance of 20,000 draws, at a level of 1e-4."""
  count = 20_000
  s = np.sort(np.asarray(draw_times(jax.random.key(3), density, count)))
  distance = np.abs(cdf(s.astype(np.float64)) - np.arange(count) / count).max()
  assert distance < 2.23 / math.sqrt(count), distance
  other = np.abs(cdf(s**1.05) - np.arange(count) / count).max()
  assert other > 2.23 / math.sqrt(count), "the bound cannot fail"


def test_the_shift_multiplies_the_ratio_of_noise_to_image():
  shifted = shift_time(GRID, 3.0)
  ratio = lambda s: s / (1 - s)
  np.testing.assert_allclose(ratio(shifted), 3 * ratio(GRID), rtol=1e-11)
  np.testing.assert_allclose(shift_time(shifted, 1 / 3), GRID, rtol=1e-11)
  assert shift_time(0.0, 3.0) == 0 and shift_time(1.0, 3.0) == 1


def test_shifts_by_size():
  """FLUX's e^0.5 and e^1.15 at 256 and 4096 tokens; sqrt(m / n) of SD3."""
  flux = DynamicShift()
  assert math.isclose(resolved_shift(flux, (32, 32)), math.exp(0.5))
  assert math.isclose(resolved_shift(flux, (128, 128)), math.exp(1.15))
  between = math.exp(0.5 + 0.65 * (1024 - 256) / (4096 - 256))
  assert math.isclose(resolved_shift(flux, (32, 128)), between)
  linear = DynamicShift(time_shift_type="linear")
  assert math.isclose(resolved_shift(linear, (128, 128)), 1.15)
  by_resolution = ResolutionShift(base_tokens=1024)  # 512 x 512 pixels
  assert resolved_shift(by_resolution, (128, 128)) == 2
  with pytest.raises(ValueError, match="size of the latents"):
    resolved_shift(flux, None)
  with pytest.raises(ValueError, match="max_tokens"):
    DynamicShift(max_tokens=256)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: DynamicShift(base_shift=math.nan), "base_shift must be a finite"),
    (lambda: ResolutionShift(base_tokens=0), "base_tokens: needs 1 or more"),
    (lambda: LogitNormalTimes(location=math.inf), "location must be a finite"),
    (lambda: LogitNormalTimes(scale=math.nan), "scale must be a finite"),
  ],
)
def test_other_numbers_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_another_type_of_shift_is_refused():
  jaxtyping.config.update("jaxtyping_disable", True)  # as for users
  with pytest.raises(ValueError, match="one of exponential, linear"):
    DynamicShift(time_shift_type="exp")


@pytest.mark.parametrize("network", [Flux(), MMDiT(), DiT(flow_steps=1000)])
@pytest.mark.parametrize(
  "schedule, prediction",
  [
    (Schedule(), "eps"),
    (Schedule("rectified_flow", steps=100), "flow"),
    (FLOW, "v"),
  ],
)
def test_a_flow_transformer_has_its_own_process(network, schedule, prediction):
  with pytest.raises(ValueError, match="rectified_flow of 1000 steps and the"):
    LatentDiffusion(unet=network, schedule=schedule, prediction=prediction)
  LatentDiffusion(unet=network, schedule=FLOW, prediction="flow")


def test_times_are_continuous_and_words_give_whole_ones():
  key = jax.random.key(0)
  t = sample_times(key, FLOW, 4096, LogitNormalTimes(shift=3.0))
  assert t.min() >= -1 and t.max() <= 999
  assert np.mean(np.asarray(t) == np.floor(t)) < 0.01
  same = draw_times(key, LogitNormalTimes(shift=3.0), 4096)
  np.testing.assert_allclose((t + 1) / 1000, same, atol=1e-7)
  for word in ("uniform", "logit_normal"):
    whole = sample_times(key, FLOW, 4096, word)
    assert (whole == jnp.floor(whole)).all() and whole.min() >= 0


def test_a_loss_holds_them_in_a_run_and_the_task_knows_the_size():
  loss = DenoisingLoss(
    "flow", LogitNormalTimes(0.2, shift=ResolutionShift(4, patch=1))
  )
  assert config_json.from_json(config_json.to_json(loss)) == loss
  stored = {"class": "DenoisingLoss", "density": "logit_normal"}
  assert config_json.from_json(stored).density == "logit_normal"
  model = LatentDiffusion(PixelSpace(), schedule=FLOW, prediction="flow")
  fixed = dataclasses.replace(loss, density=LogitNormalTimes(0.2, shift=2.0))
  batch = {"image": jnp.zeros((8, 4, 4, 3), jnp.uint8)}
  by_size, by_number = (
    DenoiserTask(model, loss=each).draw(jax.random.key(5), batch).t
    for each in (loss, fixed)
  )
  np.testing.assert_array_equal(by_size, by_number)
