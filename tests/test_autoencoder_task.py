"""Stage one's step equals a direct implementation of its definition."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_state, random_variables

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import (
  DiagonalGaussian,
  GaussianBottleneck,
  VectorQuantizer,
)
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.layers import downsample
from ldm_jax.pixels import to_float
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.first_stage.autoencoder_state import Frozen

SLOW = Optimizer(1e-3, (0.5, 0.9), weight_decay=0.0)
TASK = AutoencoderTask(
  autoencoder=Autoencoder(ConvStack(8, (1, 2), 1, groups=4), 3),
  perceptual=LPIPS(width=4),
  discriminator=PatchDiscriminator(width=8, layers=2),
  optimizer=SLOW,
  critic_optimizer=SLOW,
  disc_start=1,
  learns_logvar=True,
)


def draw(seed=0, count=4, side=16):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (count, side, side, 3), np.uint8)
  return {"image": jax.device_put(image)}


@functools.cache
def begin(task=TASK, seed=0):
  batch = draw(seed)
  images = jax.eval_shape(to_float, batch["image"])
  frozen = Frozen(random_variables(task.perceptual, images, images))
  state = random_state(task, batch, frozen)
  params = state.params | {"logvar": jnp.float32(task.logvar)}
  return state.replace(params=params), frozen, batch


@functools.cache
def stepping(task):
  """The step, compiled once for equal tasks."""
  return jax.jit(task.step)


def noise_of(task, batch, key):
  """The posterior's noise, drawn as the step draws it."""
  shape = (len(batch["image"]), *task._latent_shape(batch))
  return jax.random.normal(jax.random.split(key)[0], shape)


def plain_losses(task, state, frozen, batch, key):
  """Losses of autoencoder and discriminator, as in LDM's contperceptual.py."""
  images = to_float(batch["image"])
  noise = noise_of(task, batch, key)
  critic = task.discriminator.apply

  def parts(variables, logvar):
    recon, bottleneck_loss = task.autoencoder.apply(variables, images, noise)
    lpips = task.perceptual.apply(frozen.perceptual, images, recon)
    rec = jnp.abs(images - recon) + lpips.reshape(-1, 1, 1, 1)
    nll = (rec / jnp.exp(logvar) + logvar).sum() / len(images)
    return nll, bottleneck_loss, -critic(state.critic, recon).mean()

  def with_last(kernel, index):
    variables = jax.tree.map(lambda x: x, state.params["autoencoder"])
    variables["params"]["decoder"]["conv_out"]["kernel"] = kernel
    return parts(variables, state.params["logvar"])[index]

  last = state.params["autoencoder"]["params"]["decoder"]["conv_out"]["kernel"]
  slope = jax.jit(jax.grad(with_last), static_argnums=1)
  norms = [jnp.sqrt((slope(last, i) ** 2).sum()) for i in (0, 2)]
  d_weight = jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4)

  def generator(params):
    nll, bottleneck_loss, g = parts(params["autoencoder"], params["logvar"])
    return nll + 1e-6 * bottleneck_loss + 0.5 * d_weight * g

  def discriminator(params):
    recon, _ = task.autoencoder.apply(
      state.params["autoencoder"], images, noise
    )
    real, fake = critic(params, images), critic(params, recon)
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())

  return generator, discriminator, d_weight


def close(a, b, rtol=1e-5):
  """Leaf by leaf, with a floor at the tree's own size."""
  square = lambda leaf: np.sum(np.square(leaf, dtype=np.float64))
  floor = sum(map(square, jax.tree.leaves(b))) ** 0.5 * 1e-6
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=floor), a, b
  )


@pytest.mark.slow
def test_one_forward_pass_updates_both_networks():
  """Gradients equal those of the two losses differentiated separately."""
  state, frozen, batch = begin()
  state, key = state.replace(step=state.step + 1), jax.random.key(3)
  generator, discriminator, d_weight = plain_losses(
    TASK, state, frozen, batch, key
  )
  after, metrics = stepping(TASK)(state, frozen, batch, key)
  # Adam's first moments after one step are half of the gradients.
  first = lambda opt: jax.tree.map(lambda m: m / 0.5, opt.inner[0].mu)
  expected = jax.jit(jax.grad(generator))(state.params)
  close(first(after.opt), expected, 2e-4)
  expected = jax.jit(jax.grad(discriminator))(state.critic)
  close(first(after.critic_opt), expected, 2e-4)
  np.testing.assert_allclose(metrics["d_weight"], d_weight, rtol=1e-4)
  np.testing.assert_allclose(
    metrics["discriminator_loss"], discriminator(state.critic), rtol=1e-5
  )


@pytest.mark.parametrize("broken", ["critic", "autoencoder"])
def test_a_nan_gradient_updates_neither_network(broken):
  """Each reads the other, so both gradients are NaN; neither is updated."""
  state, frozen, batch = begin()
  state = state.replace(step=jnp.int32(1))  # the adversarial terms count
  nan = lambda x: jax.device_put(np.full(x.shape, np.nan, x.dtype))
  spoiled = lambda tree: jax.tree.map(nan, tree)
  if broken == "critic":
    state = state.replace(critic=spoiled(state.critic))
  else:
    params = spoiled(state.params["autoencoder"])
    state = state.replace(params=state.params | {"autoencoder": params})
  after, _ = stepping(TASK)(state, frozen, batch, jax.random.key(3))
  for name in ("params", "critic"):
    before = getattr(state, name)
    jax.tree.map(np.testing.assert_array_equal, before, getattr(after, name))
  for skipping in (after.opt, after.critic_opt):
    assert int(skipping.in_row) == int(skipping.skipped) == 1
  assert int(after.step) == 2


def test_before_disc_start_the_discriminator_is_not_updated():
  state, frozen, batch = begin()
  step = stepping(TASK)
  first, metrics = step(state, frozen, batch, jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, first.critic, state.critic)
  assert metrics["discriminator_loss"] == 0 and metrics["d_weight"] == 0
  alone = dataclasses.replace(TASK, discriminator=None)
  bare = state.replace(critic=None, critic_opt=None)
  same, _ = stepping(alone)(bare, frozen, batch, jax.random.key(3))
  close(first.params, same.params)
  second, metrics = step(first, frozen, batch, jax.random.key(4))
  assert metrics["discriminator_loss"] > 0
  moved = jax.tree.map(
    lambda a, b: np.abs(a - np.asarray(b)).max(), second.critic, first.critic
  )
  assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_logvar_stays_where_the_optimizer_does_not_see_it():
  task = dataclasses.replace(
    TASK,
    logvar=0.5,
    learns_logvar=False,
    optimizer=dataclasses.replace(SLOW, weight_decay=0.1),
  )
  state, frozen, batch = begin(task)
  after, metrics = stepping(task)(state, frozen, batch, jax.random.key(3))
  assert after.params["logvar"] == 0.5
  # Nor does it count in the norm that gradients are clipped by.
  moments = after.opt.inner[0].mu["autoencoder"]
  norm = optax.tree.norm(moments) / (1 - SLOW.betas[0])
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


def test_the_kl_divergence_of_a_gaussian():
  """0 for N(0, 1); 2048 = 4096 / 2 for mean 1 on 4 x 32 x 32 latents."""
  zeros = jnp.zeros((2, 32, 32, 4))
  assert np.all(DiagonalGaussian(zeros, zeros).kl() == 0)
  np.testing.assert_allclose(DiagonalGaussian(zeros + 1, zeros).kl(), 2048)
  # logvar -10: 0.5 * 4096 * (e^-10 - 1 + 10)
  np.testing.assert_allclose(
    DiagonalGaussian(zeros, zeros - 10).kl(), 18432.09, rtol=1e-6
  )
  extreme = jnp.concatenate(
    [
      zeros,
      zeros + 99,
    ],
    -1,
  )
  assert np.all(GaussianBottleneck().posterior(extreme).logvar == 20)
  assert np.all(GaussianBottleneck().posterior(-extreme).logvar == -30)


def test_vector_quantisation():
  """Nearest codes, straight-through gradients, beta on the codebook loss."""
  layer = VectorQuantizer(codes=7, width=3)
  rng = np.random.default_rng(0)
  z = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
  book = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
  variables = {"params": {"codebook": book}}
  codes = layer.apply(variables, z, method="quantize")
  distance = np.linalg.norm(z[..., None, :] - book, axis=-1)
  np.testing.assert_allclose(codes, book[distance.argmin(-1)], atol=1e-6)
  through = jax.grad(
    lambda z: layer.apply(variables, z, method="quantize").sum()
  )
  np.testing.assert_array_equal(through(z), 1)

  def bottleneck_loss(variables, z):
    return layer.apply(variables, layer.posterior(z), z, method="loss")

  by_code, by_z = jax.grad(bottleneck_loss, (0, 1))(variables, z)
  np.testing.assert_allclose(by_z, 2 * (z - codes) / z.size, atol=1e-6)
  one = (distance.argmin(-1) == 2)[..., None]
  expected = 0.25 * 2 * ((book[2] - z) * one).sum((0, 1, 2)) / z.size
  np.testing.assert_allclose(
    by_code["params"]["codebook"][2], expected, atol=1e-6
  )


@pytest.mark.slow
def test_vq_autoencoder_trains():
  task = dataclasses.replace(
    TASK,
    autoencoder=Autoencoder(
      ConvStack(8, (1, 2), 1, groups=4), 3, VectorQuantizer(16, 3)
    ),
    bottleneck_weight=1.0,
    reduction="mean",
    ema_decay=0.99,
  )
  state, frozen, batch = begin(task)
  step, losses = stepping(task), []
  for i in range(8):
    state, metrics = step(state, frozen, batch, jax.random.key(i))
    losses.append(float(metrics["l1"]))
  assert losses[-1] < losses[0]
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()),
    state.ema,
    state.params["autoencoder"],
  )
  assert max(jax.tree.leaves(moved)) > 0


def test_the_autoencoder_pads_right_and_bottom():
  """Shifting an image by the stride shifts its latents, from the top left."""
  trunk = ConvStack(8, (1, 2), 1, has_mid_attention=False, groups=1)
  autoencoder = Autoencoder(trunk, 3)
  images = to_float(draw(5, 1, 32)["image"])
  variables = random_variables(autoencoder, images, jnp.zeros((1, 16, 16, 3)))
  kernel = variables["params"]["encoder"]["down_0_downsample"]["kernel"]
  one = jnp.zeros((1, 8, 8, 8)).at[0, 0, 0, 0].set(1.0)

  class Down(nn.Module):
    @nn.compact
    def __call__(self, x):
      return downsample(x, name="d", padding=(0, 1), dtype="float32")

  out = Down().apply(
    {"params": {"d": {"kernel": kernel, "bias": jnp.zeros(8)}}}, one
  )
  # Only the window that starts at the corner sees it, by its first weight.
  np.testing.assert_allclose(out[0, 0, 0], kernel[0, 0, 0], atol=1e-6)
  assert np.all(out[0, 1:] == 0) and np.all(out[0, :, 1:] == 0)


@pytest.mark.parametrize("side", [15, 1])
def test_impossible_sizes_are_refused(side):
  with pytest.raises(ValueError, match="multiple of 2"):
    TASK.autoencoder.latent_shape(side, 16)
