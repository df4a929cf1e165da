"""A tiny autoencoder learns a larger one's latents and images."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_state, random_variables

import ldm_jax
from ldm_jax import config
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.reconstruct import reconstruction_function
from ldm_jax.latents import known_latent_scale
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.bottleneck import DiagonalGaussian
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.latent_normalization import LatentNormalization
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.pretrained.open_autoencoder import open_autoencoder
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.training.distillation import DistillationTask
from ldm_jax.training.first_stage.teacher import Frozen


class Patches(nn.Module):
  """A first stage of two linear layers, with Gaussian latents."""

  stride, latent_channels = 2, 3
  normalization = LatentNormalization((0.1,), (1.0, 1.5, 0.5))

  def setup(self):
    self.encoder, self.decoder = nn.Dense(6), nn.Dense(12)

  def latent_shape(self, height, width):
    return height // 2, width // 2, 3

  def encode(self, images):
    b, h, w, _ = images.shape
    patches = images.reshape(b, h // 2, 2, w // 2, 2, 3).swapaxes(2, 3)
    return self.posterior(self.encoder(patches.reshape(b, h // 2, w // 2, 12)))

  def posterior(self, moments):
    return DiagonalGaussian(*jnp.split(moments, 2, axis=-1))

  def decode(self, latents):
    b, h, w, _ = latents.shape
    patches = self.decoder(latents).reshape(b, h, w, 2, 2, 3).swapaxes(2, 3)
    return patches.reshape(b, 2 * h, 2 * w, 3)

  def __call__(self, images, noise):
    return self.decode(self.encode(images).sample(noise)), jnp.zeros(())


TEACHER = Patches()
SMALL = TinyAutoencoder(4, 3, (1, 1), (1, 1))  # what a run can store
TASK = DistillationTask(
  channels=4,
  latent_scale=0.7,
  optimizer=Optimizer(1e-3, (0.5, 0.9), weight_decay=0.0),
  critic_optimizer=Optimizer(1e-3, (0.5, 0.9), weight_decay=0.0),
  ema_decay=0.9,
)
DATA = Data(
  Glyphs(size=16), Glyphs(split="validation", size=8), batch=8, held_out=8
)
SHARDING = MeshShape().build()


def experiment(start, task=TASK, steps=2):
  return Experiment(
    task,
    DATA,
    steps,
    checkpoints=CheckpointPolicy(every=1),
    reports=Reports(every=1, previews_every=0),
    start=str(start),
    trackers=(),
  )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A teacher in diffusers' format whose scale is 0.25, and its parameters."""
  folder = tmp_path_factory.mktemp("teacher") / "vae"
  images, noise = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 3))
  params = random_variables(SMALL, images, noise)
  ldm_jax.save_pretrained(SMALL, params, str(folder), latent_scale=0.25)
  return folder, params


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
  """A run of two steps."""
  folder = tmp_path_factory.mktemp("tiny") / "run"
  task = dataclasses.replace(TASK, latent_scale=None)
  ldm_jax.train(experiment(published[0], task), str(folder))
  return Run.open(str(folder))


@functools.cache
def begin(task):
  task = dataclasses.replace(task, autoencoder=SMALL)
  task = task.with_first_stage(TEACHER)
  rng = np.random.default_rng(0)
  side = 16 if task.discriminator is None else 24
  image = rng.integers(0, 256, (2, side, side, 3), np.uint8)
  batch = {"image": jnp.asarray(image)}
  images, noise = (
    to_float(batch["image"]),
    jnp.zeros((2, side // 2, side // 2, 3)),
  )
  perceptual = None
  if task.perceptual is not None:
    perceptual = random_variables(task.perceptual, images, images)
  teacher = random_variables(TEACHER, images, noise, seed=1)
  frozen = Frozen(teacher, jnp.float32(0.7), perceptual)
  return task, random_state(task, batch, frozen), frozen, batch


def plain_loss(task, frozen, images, key):
  """The definition, from the teacher's moments on."""
  moments = TEACHER.apply(frozen.first_stage, images, method="encode").moments
  mean, logvar = jnp.split(moments, 2, axis=-1)
  noise = jax.random.normal(key, mean.shape)
  raw = mean + jnp.exp(logvar / 2) * noise
  shift, width = 0.1, jnp.array([1.0, 1.5, 0.5])
  target = TEACHER.apply(frozen.first_stage, raw, method="decode").clip(-1, 1)
  latents, mode = 0.7 * (raw - shift) / width, 0.7 * (mean - shift) / width

  def loss(params):
    encoded = task.autoencoder.apply(params, images, method="encode").mode()
    recon = task.autoencoder.apply(params, latents, method="decode")
    found = ((recon - target) ** 2).mean()
    found += task.latent_weight * ((encoded - mode) ** 2).mean()
    if task.perceptual is not None:
      lpips = task.perceptual.apply(frozen.perceptual, target, recon)
      found += task.perceptual_weight * lpips.mean()
    return found

  return loss, target, latents


def close(a, b, rtol=2e-4):
  floor = float(optax.tree.norm(b)) * 1e-5
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=floor), a, b
  )


# Compiled for few calls.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def first_moments(opt):
  """Adam's after one step, which are half of the gradients."""
  return jax.tree.map(lambda m: m / 0.5, opt.inner[0].mu)


def test_a_step_descends_the_definition():
  task, state, frozen, batch = begin(TASK)
  key = jax.random.key(3)
  after, metrics = compiled(task.step)(state, frozen, batch, key)
  loss, *_ = plain_loss(task, frozen, to_float(batch["image"]), key)
  value, grads = compiled(jax.value_and_grad(loss))(state.params["autoencoder"])
  close(first_moments(after.opt), grads)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)


@pytest.mark.slow
def test_a_step_with_a_discriminator_descends_the_definition():
  """And the discriminator its own loss, on the same images."""
  task = dataclasses.replace(
    TASK,
    perceptual=LPIPS(width=4),
    discriminator=PatchDiscriminator(8, layers=2),
    disc_weight=0.3,
  )
  task, state, frozen, batch = begin(task)
  key, critic = jax.random.key(3), task.discriminator.apply
  after, _ = compiled(task.step)(state, frozen, batch, key)
  images = to_float(batch["image"])
  plain, target, latents = plain_loss(task, frozen, images, key)
  decode = functools.partial(task.autoencoder.apply, method="decode")

  def loss(params):
    return (
      plain(params) - 0.3 * critic(state.critic, decode(params, latents)).mean()
    )

  def critic_loss(params):
    recon = decode(state.params["autoencoder"], latents)
    real, fake = critic(params, target), critic(params, recon)
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())

  close(
    first_moments(after.opt),
    compiled(jax.grad(loss))(state.params["autoencoder"]),
  )
  close(
    first_moments(after.critic_opt),
    compiled(jax.grad(critic_loss))(state.critic),
  )


def test_the_photographs_can_be_the_target():
  task, _, frozen, batch = begin(TASK)
  images = to_float(batch["image"])
  other = dataclasses.replace(task, target="images", latents="mode")
  lesson = other.lesson(frozen, images, jax.random.key(0))
  np.testing.assert_array_equal(lesson.target, images)
  np.testing.assert_array_equal(lesson.latents, lesson.mode)


def test_the_student_fits_its_teacher(run):
  task = run.experiment.task
  assert task.first_stage == SMALL
  assert task.autoencoder == TinyAutoencoder(4, 3, (1, 3), (3, 1))
  deep = Autoencoder(ConvStack(8, (1, 1, 1, 2), 1, groups=4), 16)
  student = DistillationTask().with_first_stage(deep).autoencoder
  assert student == TinyAutoencoder(latent_channels=16)  # TAESD's blocks


def test_the_teacher_stays_as_it_was(published, run):
  """Its parameters and the scale of its config are in the run."""
  frozen = run.frozen(SHARDING)
  jax.tree.map(np.testing.assert_array_equal, frozen.first_stage, published[1])
  assert float(frozen.latent_scale) == 0.25


def test_a_resumed_run_equals_one_that_was_not_stopped(
  published, run, tmp_path
):
  """Its teacher is in the run: the start is not read again."""
  task = dataclasses.replace(TASK, latent_scale=None)
  folder = str(tmp_path / "run")
  ldm_jax.train(experiment(published[0], task, 1), folder)
  ldm_jax.train(experiment("", task, 2), folder)
  jax.tree.map(
    np.testing.assert_array_equal,
    Run.open(folder).trained(SHARDING),
    run.trained(SHARDING),
  )


def test_the_run_is_a_first_stage_of_scale_1(run, tmp_path):
  params = run.trained(SHARDING)
  assert known_latent_scale(run.experiment.task) == 1
  module, variables, scale = open_autoencoder(run.folder)
  assert module == run.experiment.task.autoencoder and scale == 1
  jax.tree.map(np.testing.assert_array_equal, variables, params)
  ldm_jax.convert(ldm_jax.ConvertRequest(run.folder, str(tmp_path / "tiny")))
  stored = json.loads((tmp_path / "tiny" / "config.json").read_text())
  assert stored["_class_name"] == "AutoencoderTiny"
  assert stored["scaling_factor"] == 1
  again, loaded = ldm_jax.from_pretrained(str(tmp_path / "tiny"))
  assert again == module
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_the_run_reconstructs_and_decodes_previews(run):
  stage, params = run.experiment.task.autoencoder, run.trained(SHARDING)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  given = to_float(jnp.asarray(images))
  latents = stage.apply(params, given, method="encode").mode()
  needed = to_uint8(stage.apply(params, latents, method="decode"))
  found = reconstruction_function(run, SHARDING)(images)
  np.testing.assert_allclose(np.int16(found), np.int16(needed), atol=1)
  decoded = PreviewDecoder.open(run.folder).images(np.asarray(latents))
  np.testing.assert_allclose(np.int16(decoded), np.int16(needed), atol=1)


@pytest.mark.slow
def test_diffusers_decodes_and_encodes_the_same(run, tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  folder = str(tmp_path / "tiny")
  ldm_jax.convert(ldm_jax.ConvertRequest(run.folder, folder))
  theirs = diffusers.AutoencoderTiny.from_pretrained(folder)
  assert theirs.config.scaling_factor == 1
  stage, params = run.experiment.task.autoencoder, run.trained(SHARDING)
  images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3))
  given = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
  with torch.no_grad():
    latents = theirs.encode(given).latents
    decoded = theirs.decode(latents).sample
  last = lambda array: array.numpy().transpose(0, 2, 3, 1)
  ours = stage.apply(params, jnp.float32(images), method="encode").mode()
  np.testing.assert_allclose(ours, last(latents), atol=1e-5)
  ours = stage.apply(params, jnp.asarray(last(latents)), method="decode")
  np.testing.assert_allclose(ours, last(decoded), atol=1e-5)


@pytest.mark.slow
def test_a_decoder_alone_keeps_its_encoder_and_encodes_nothing(
  published, tmp_path
):
  task = dataclasses.replace(TASK, trains_encoder=False, ema_decay=None)
  folder = str(tmp_path / "run")
  ldm_jax.train(experiment(published[0], task, 1), folder)
  made = Run.open(folder)
  kernels = [x for x in jax.tree.leaves(made.state_shapes().opt) if x.ndim == 4]
  decoder = made.trained(SHARDING)["params"]["decoder"]
  assert len(kernels) == 2 * sum(x.ndim == 4 for x in jax.tree.leaves(decoder))
  assert PreviewDecoder.open(folder).images(np.zeros((1, 2, 2, 3))).any()
  with pytest.raises(ConfigError, match="no encoder"):
    reconstruction_function(made, SHARDING)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"autoencoder": TinyAutoencoder(4, 4, (1, 3), (3, 1))}, "of 4 channels"),
    ({"autoencoder": TinyAutoencoder(4, 3)}, "stride 8, the first stage of 3"),
  ],
)
def test_a_student_of_other_latents_is_refused(
  published, tmp_path, changes, message
):
  task = dataclasses.replace(TASK, **changes)
  with pytest.raises(ConfigError, match=message):
    ldm_jax.train(experiment(published[0], task), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_what_cannot_be_distilled_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"needs a trained model.*start"):
    ldm_jax.train(experiment(""), str(tmp_path / "run"))
  with pytest.raises(ValueError, match="stride 1 cannot"):
    TASK.with_first_stage(PixelSpace())
  with pytest.raises(ValueError, match="channels=8, but"):
    DistillationTask(TinyAutoencoder(16), channels=8)
  with pytest.raises(ValueError, match="2 levels, decoder_blocks 1"):
    TinyAutoencoder(8, 4, (1, 3), (3,))


def test_the_shipped_config_takes_any_start():
  made = config.load("tiny_decoder")
  assert made.task.autoencoder is None and not made.start
  task = made.task.with_first_stage(TEACHER)
  assert task.autoencoder.channels == 8
  again = config.override(made, {"task.channels": "32", "start": "X"})
  assert again.task.channels == 32 and again.start == "X"
