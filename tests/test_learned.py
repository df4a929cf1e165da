"""Trained networks reach closed-form optima, and learn real digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.loss import DenoisingLoss, sample_times
from ldm_jax.diffusion.prediction import Estimate, to_estimate
from ldm_jax.diffusion.schedule import Schedule, append_dims, q_sample
from ldm_jax.evaluation.metrics.likelihood import (
  bits_per_dimension,
  log_likelihood,
)
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.denoiser import DenoiserTask, Frozen
from ldm_jax.training.first_stage.autoencoder_state import Frozen as Nothing

SCHEDULE = Schedule(start=0.0015, end=0.0205)


def gaussian(schedule, mean, std):
  """The exact denoiser of N(mean, std^2)."""

  def denoise(xt, level):
    signal, sigma = append_dims(level.signal, xt), append_dims(level.sigma, xt)
    variance = signal**2 * std**2 + sigma**2
    x0 = mean + signal * std**2 / variance * (xt - signal * mean)
    return Estimate(x0, (xt - signal * x0) / sigma)

  return denoise


@pytest.mark.parametrize("kind", ["cosine", "rectified_flow"])
def test_the_likelihood_of_a_known_distribution_is_exact(kind):
  schedule = Schedule(kind)
  rng = np.random.default_rng(0)
  mean, std = np.array([0.3, -0.5, 0.1]), np.array([0.5, 0.2, 0.9])
  x0 = jnp.asarray(mean + std * rng.standard_normal((20, 3)), jnp.float32)
  denoise = gaussian(schedule, jnp.asarray(mean), jnp.asarray(std))
  found = jax.jit(lambda x: log_likelihood(denoise, schedule, x, 50))(x0)
  # The first time's noise is part of what it describes.
  first = schedule.level_at(0)
  spread = np.sqrt(std**2 + float(first.ratio) ** 2)
  away = (np.asarray(x0 / first.signal) - mean) / spread
  each = -0.5 * (away**2 + np.log(2 * np.pi * spread**2))
  expected = each.sum(1) - 3 * np.log(first.signal)
  np.testing.assert_allclose(found, expected, atol=0.01)
  key = jax.random.key(0)
  guess = log_likelihood(denoise, schedule, x0, 50, key, probes=2)
  # The Jacobian is diagonal, so every probe of signs is exact.
  np.testing.assert_allclose(guess, found, atol=2e-3)


def test_bits_are_of_levels():
  """Uniform on [-1, 1]: eight bits less half a level's place."""
  nats = jnp.log(0.5) * 12 * jnp.ones(2)
  found = bits_per_dimension(nats, 12)
  np.testing.assert_allclose(found, 1 + np.log2(127.5), rtol=1e-6)


class Net(nn.Module):
  """A small network over numbers and times."""

  out: int
  width: int = 128

  @nn.compact
  def __call__(self, x, t):
    t = t[:, None] / 1000
    waves = 2.0 ** jnp.arange(6) * jnp.pi * t
    h = jnp.concatenate([x, t, jnp.sin(waves), jnp.cos(waves)], axis=1)
    for _ in range(3):
      h = nn.silu(nn.Dense(self.width)(h))
    return nn.Dense(self.out)(h)


def learned(draw, size, loss, steps, count=512, rate=2e-3):
  """A network trained on samples of `draw(key, count)`."""
  net = Net(size)
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
  params = net.init(jax.random.key(1), jnp.zeros((1, size)), jnp.zeros(1))

  def price(params, key):
    keys = jax.random.split(key, 3)
    x0 = draw(keys[0], count)
    t = sample_times(keys[1], SCHEDULE, count)
    noise = jax.random.normal(keys[2], x0.shape)
    network = lambda xt, t: net.apply(params, xt, t)
    return loss(SCHEDULE, network, x0, t, noise).mean()

  @jax.jit
  def all_steps(params, key):
    def body(carry, key):
      params, opt, ema = carry
      updates, opt = optimizer.update(jax.grad(price)(params, key), opt)
      params = optax.apply_updates(params, updates)
      ema = jax.tree.map(lambda a, b: 0.995 * a + 0.005 * b, ema, params)
      return (params, opt, ema), None

    begin = params, optimizer.init(params), params
    return jax.lax.scan(body, begin, jax.random.split(key, steps))[0][2]

  params = all_steps(params, jax.random.key(2))
  return net, params, price


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_loss_reaches_its_lower_bound_and_not_less(prediction):
  """x0 ~ N(0, s^2): E|y - y*|^2 is the variance of y given x_t."""
  std = 0.7
  draw = lambda key, n: std * jax.random.normal(key, (n, 4))
  loss = DenoisingLoss(prediction)
  _, params, price = learned(draw, 4, loss, 1500)
  many = jax.jit(jax.vmap(lambda key: price(params, key)))
  found = float(many(jax.random.split(jax.random.key(3), 1000)).mean())
  signal, sigma = SCHEDULE.signal_and_sigma(jnp.arange(1000.0))
  seen = signal**2 * std**2 + sigma**2
  floors = {
    "eps": signal**2 * std**2 / seen,
    "x0": std**2 * sigma**2 / seen,
    "v": std**2 / seen,
  }
  floor = float(floors[prediction].mean())
  assert 0.995 * floor < found < 1.01 * floor


@pytest.mark.slow
def test_eight_modes_are_learned_and_sampled():
  """The score of a mixture, and each mode as often as its weight."""
  angles = np.arange(8) * np.pi / 4
  hills = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1))
  std = 0.1

  def draw(key, count):
    one, two = jax.random.split(key)
    places = hills[jax.random.randint(one, (count,), 0, 8)]
    return places + std * jax.random.normal(two, (count, 2))

  net, params, _ = learned(draw, 2, DenoisingLoss("eps"), 8000, 1024)
  errors = []
  for t in (50, 200, 400, 700):
    level = SCHEDULE.level(jnp.full((4000,), float(t)))
    keys = jax.random.split(jax.random.key(t))
    x0 = draw(keys[0], 4000)
    noise = jax.random.normal(keys[1], x0.shape)
    xt = q_sample(SCHEDULE, x0, level.time, noise)
    signal, sigma = level.signal[0], level.sigma[0]
    variance = signal**2 * std**2 + sigma**2
    apart = xt[:, None] - signal * hills
    weight = jax.nn.softmax(-jnp.square(apart).sum(2) / (2 * variance), 1)
    expected = sigma * (weight[..., None] * apart).sum(1) / variance
    found = net.apply(params, xt, level.time)
    errors.append(
      float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
    )
  assert np.mean(errors) < 0.05, errors

  def denoise(xt, level):
    t = jnp.broadcast_to(level.time, xt.shape[:1])
    return to_estimate("eps", level, xt, net.apply(params, xt, t))

  keys = samplers.image_keys(jax.random.key(5), jnp.arange(8000))
  plan = samplers.SamplerConfig(50, "dpmpp_2m").plan(SCHEDULE)
  noise = samplers.initial_noise(keys, (2,)) * plan.init_noise_sigma
  samples = jax.jit(lambda xt: samplers.sample(denoise, xt, plan.table, keys))(
    noise
  )
  away = jnp.linalg.norm(samples[:, None] - hills, axis=2)
  mass = np.bincount(np.asarray(away.argmin(1)), minlength=8) / 8000 * 8
  assert np.abs(mass - 1).max() < 0.15, mass
  assert np.mean(away.min(1) < 4 * std) > 0.98


def rough_images():
  """Eight, of 16 x 16 pixels, each unlike the others."""
  rng = np.random.default_rng(0)
  rough = rng.integers(0, 256, (8, 4, 4, 3)).astype(np.float32)
  smooth = jax.image.resize(jnp.asarray(rough), (8, 16, 16, 3), "linear")
  return jnp.round(smooth).astype(jnp.uint8)


@pytest.mark.slow
def test_one_batch_is_memorised_by_stage_one():
  batch = {"image": rough_images()}
  task = AutoencoderTask(
    autoencoder=Autoencoder(
      ConvStack(32, (1, 2), 1, has_mid_attention=False, groups=8), 8
    ),
    perceptual=None,
    discriminator=None,
    disc_weight=0.0,
    optimizer=Optimizer(
      4e-3, (0.9, 0.95), weight_decay=0.0, decay="cosine", decay_steps=1000
    ),
    pixel_norm="l2",
    init_scale=3**0.5,
  )
  state = repeated(task, batch, Nothing(None), 1000)
  metrics = jax.jit(task.measure)(
    state, Nothing(None), batch, jax.random.key(0)
  )
  assert metrics["psnr"] > 40


@pytest.mark.slow
def test_one_batch_is_memorised_by_stage_two():
  """The noise is predicted exactly, and samples are the images of the batch."""
  images, steps = rough_images(), 400
  batch = {"image": images.repeat(4, 0)}
  model = LatentDiffusion(
    first_stage=PixelSpace(), unet=unet(32, kind="plain"), schedule=SCHEDULE
  )
  task = DenoiserTask(
    model=model,
    optimizer=Optimizer(
      2e-3, warmup=20, decay="cosine", decay_steps=steps, muon=1e-2
    ),
    ema_decay=0.99,
  )
  frozen = Frozen({}, jnp.float32(1.0))
  state = repeated(task, batch, frozen, steps)
  price = jax.jit(lambda key: task.measure(state, frozen, batch, key)["loss"])
  losses = [price(key) for key in jax.random.split(jax.random.key(2), 50)]
  assert np.mean(losses) < 0.02, np.mean(losses)
  sharding = MeshShape().build(jax.devices()[:1])
  engine = SamplingEngine(model, task.parameters(state.ema, frozen), sharding)
  nothing = Conditioning({}, {})
  settings = SamplingConfig(16, 16, samplers.SamplerConfig(50, eta=1.0))
  samples = engine.generate(
    settings, nothing, nothing, GenerationInputs(64, 64)
  )
  samples = np.concatenate(list(samples)).astype(float)
  apart = samples[:, None] - np.asarray(images, float)
  away = np.sqrt(np.square(apart).mean((2, 3, 4)))  # of 255
  assert away.min(1).max() < 20, away.min(1)
  assert len(set(away.argmin(1))) == 8


def repeated(task, batch, frozen, steps):
  """The state after so many steps on one batch."""
  state = jax.jit(task.init)(jax.random.key(0), batch, frozen)
  step = jax.jit(task.step, donate_argnums=0)
  for key in jax.random.split(jax.random.key(1), steps):
    state, _ = step(state, frozen, batch, key)
  return state


def unet(channels, kind="transformer", **more):
  return UNet(
    out_channels=3,
    channels=channels,
    multipliers=(1, 2),
    blocks=1,
    attention=AttentionPlan((0, 1), heads=4, kind=kind),
    modulation="scale_shift",
    groups=8,
    **more,
  )


@pytest.mark.slow
def test_digits_are_sampled_that_a_classifier_of_real_ones_reads():
  """scikit-learn's 8 x 8 digits, on pixels, class to image."""
  datasets = pytest.importorskip("sklearn.datasets")
  svm = pytest.importorskip("sklearn.svm")
  digits = datasets.load_digits()
  seen, unseen = slice(0, 1400), slice(1400, None)
  classifier = svm.SVC(gamma=1e-3).fit(digits.data[seen], digits.target[seen])
  assert classifier.score(digits.data[unseen], digits.target[unseen]) > 0.95
  levels = np.floor(digits.images / 16 * 255 + 0.5).astype(np.uint8)
  images = jnp.asarray(levels[seen, ..., None].repeat(3, -1))
  labels = jnp.asarray(digits.target[seen].astype(np.int32))
  steps = 400
  model = LatentDiffusion(
    first_stage=PixelSpace(),
    unet=unet(32, vector="mlp"),
    conditioners=(ClassEmbedder(classes=10, width=64, joins="both"),),
    schedule=Schedule("rectified_flow"),
    prediction="flow",
  )
  task = DenoiserTask(
    model=model,
    loss=DenoisingLoss("flow"),
    optimizer=Optimizer(
      2e-3, warmup=20, decay="cosine", decay_steps=steps, muon=1e-2
    ),
    ema_decay=0.99,
  )
  frozen = Frozen({}, jnp.float32(1.0))
  first = {"image": images[:64], "label": labels[:64]}
  state = jax.jit(task.init)(jax.random.key(0), first, frozen)

  rng, step = np.random.default_rng(1), jax.jit(task.step, donate_argnums=0)
  for key in jax.random.split(jax.random.key(1), steps):
    rows = rng.integers(0, len(images), 64)
    batch = {"image": images[rows], "label": labels[rows]}
    state, _ = step(state, frozen, batch, key)
  params = task.parameters(state.ema, frozen)
  expected = np.arange(200, dtype=np.int32) % 10
  sharding = MeshShape().build(jax.devices()[:1])
  engine = SamplingEngine(model, params, sharding)
  settings = SamplingConfig(
    8, 8, samplers.SamplerConfig(25), ClassifierFreeGuidance(1.5)
  )
  conditioning = lambda null: Conditioning(
    {"label": expected}, {"label": np.full(200, null)}
  )
  samples = np.concatenate(
    list(
      engine.generate(
        settings,
        conditioning(False),
        conditioning(True),
        GenerationInputs(200, 200),
      )
    )
  )
  pixels = np.round(samples.mean(-1).reshape(200, -1) / 255 * 16)
  accuracy = (classifier.predict(pixels) == expected).mean()
  assert accuracy >= 0.97, accuracy
  # The classifier assigns noise to a few classes only, so it reads the digits.
  noise = np.random.default_rng(0).integers(0, 17, (200, 64))
  assert len(set(classifier.predict(noise))) < 5
