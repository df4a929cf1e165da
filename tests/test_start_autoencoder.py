"""Stage one from a trained autoencoder: whole, its decoder, or a part of it."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from untrained import untrained

import ldm_jax
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.pretrained.open_autoencoder import open_autoencoder
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.first_stage.reconstruction_loss import (
  ReconstructionLoss,
  WeightSchedule,
  pixel_error,
)
from ldm_jax.training.first_stage.trainable_parameters import replace, select

MODULE = Autoencoder(ConvStack(8, (1, 2), 1, groups=4), 3)
ADAM = Optimizer(1e-3, (0.5, 0.9), weight_decay=0.01)
TASK = AutoencoderTask(
  None,
  None,
  None,
  ADAM,
  ema_decay=0.9,
  trains=("decoder",),
)
DATA = Data(
  Glyphs(size=16),
  Glyphs(split="validation", size=8),
  batch=8,
  held_out=8,
)
LAST = ("decoder/up_0", "decoder/norm_out", "decoder/conv_out")


def experiment(start, task=TASK, steps=3):
  return Experiment(
    task,
    DATA,
    steps,
    checkpoints=CheckpointPolicy(every=2),
    reports=Reports(every=1, previews_every=0),
    start=str(start),
    trackers=(),
  )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A folder in diffusers' format, and its parameters."""
  folder = tmp_path_factory.mktemp("start") / "vae"
  images, noise = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 3))
  params = random_variables(MODULE, images, noise)
  ldm_jax.save_pretrained(MODULE, params, str(folder), image_size=16)
  return folder, params


@pytest.fixture(scope="module")
def decoder_run(published, tmp_path_factory):
  """A run of the decoder alone."""
  folder = tmp_path_factory.mktemp("decoder") / "run"
  ldm_jax.train(experiment(published[0]), str(folder))
  return folder


def trained(folder):
  run = Run.open(str(folder))
  return run, jax.tree.map(np.asarray, run.trained(MeshShape().build()))


def changed(before, after):
  """Top-level modules, of encoder and decoder, with other bits."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(before),
    jax.tree.leaves(after),
    strict=True,
  )
  return {
    (path[1].key, path[2].key)
    for (path, old), new in pairs
    if np.any(np.asarray(old) != np.asarray(new))
  }


def test_a_decoder_learns_and_latents_keep_every_bit(published, decoder_run):
  _, before = published
  run, after = trained(decoder_run)
  parts = changed(before, after)
  assert parts and {side for side, _ in parts} == {"decoder"}
  images = jnp.asarray(
    np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32
  )
  encode = jax.jit(
    lambda params: MODULE.apply(params, images, method="encode").moments
  )
  np.testing.assert_array_equal(encode(before), encode(after))
  assert run.experiment.task.autoencoder == MODULE


def test_only_what_is_trained_has_an_optimizers_state(decoder_run):
  run, params = trained(decoder_run)
  state = run.state_shapes()
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  moments = [leaf for leaf in jax.tree.leaves(state.opt) if leaf.ndim > 1]
  kernels = jax.tree.leaves(params["params"]["decoder"])
  kernels = [leaf for leaf in kernels if leaf.ndim > 1]
  assert size(moments) == 2 * size(kernels)


def test_a_resumed_run_equals_one_that_was_not_stopped(
  published, decoder_run, tmp_path
):
  begun = experiment(published[0], steps=2)
  ldm_jax.train(begun, str(tmp_path / "run"))
  ldm_jax.train(
    dataclasses.replace(begun, steps=3, start=""), str(tmp_path / "run")
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    trained(tmp_path / "run")[1],
    trained(decoder_run)[1],
  )


def test_a_run_without_a_checkpoint_reads_its_start_again(
  published, decoder_run, tmp_path
):
  folder = tmp_path / "run"
  shutil.copytree(decoder_run, folder)
  shutil.rmtree(folder / "checkpoints")
  ldm_jax.train(experiment(published[0]), str(folder))
  jax.tree.map(
    np.testing.assert_array_equal, trained(folder)[1], trained(decoder_run)[1]
  )


@pytest.mark.slow
def test_last_blocks_learn_from_a_run(decoder_run, tmp_path):
  """And everything learns where nothing is chosen."""
  _, before = trained(decoder_run)
  for trains, needed in ((LAST, True), ((), False)):
    task = dataclasses.replace(TASK, trains=trains)
    folder = tmp_path / str(len(trains))
    ldm_jax.train(experiment(decoder_run, task, 1), str(folder))
    parts = changed(before, trained(folder)[1])
    names = {f"{side}/{module}" for side, module in parts}
    assert all(name.startswith(LAST) for name in names) == needed
    assert "decoder/conv_out" in names


@pytest.mark.slow
def test_a_discriminator_is_continued(tmp_path):
  """With no rate it is the first run's; a fresh one is not."""
  still = Optimizer(1e-12, weight_decay=0.0)
  task = AutoencoderTask(
    MODULE,
    None,
    PatchDiscriminator(8, layers=2),
    critic_optimizer=still,
    disc_start=0,
  )
  untrained(experiment("", task, 1), tmp_path / "one")
  critics = [critic_of(tmp_path / "one")]
  for flag in (True, False):
    again = dataclasses.replace(task, continues_discriminator=flag)
    folder = tmp_path / str(flag)
    ldm_jax.train(experiment(tmp_path / "one", again, 1), str(folder))
    critics.append(critic_of(folder))
  first, continued, fresh = (c["params"]["conv0"]["kernel"] for c in critics)
  np.testing.assert_allclose(first, continued, atol=1e-6)
  assert np.abs(first - fresh).max() > 1e-3


def critic_of(folder):
  from ldm_jax.training.first_stage.start_autoencoder import _critic

  run = Run.open(str(folder))
  sharding = MeshShape().build()
  return jax.tree.map(
    np.asarray, _critic(str(folder), run.experiment.task, sharding, ())
  )


@pytest.mark.parametrize(
  ("changes", "has_start", "message"),
  [
    ({"trains": ("decoder/up_7",)}, True, "selects no parameter"),
    ({"autoencoder": MODULE.clone(latent_channels=4)}, True, "not that of"),
    ({"continues_discriminator": True}, True, "and it is none"),
    ({"trains": ()}, False, "autoencoder=None takes it from"),
    ({"autoencoder": MODULE}, False, "leaves the rest as it was"),
  ],
)
def test_what_does_not_fit_is_one_line(
  published, tmp_path, changes, has_start, message
):
  task = dataclasses.replace(TASK, **changes)
  start = published[0] if has_start else ""
  with pytest.raises(ConfigError, match=message):
    ldm_jax.train(experiment(start, task), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_fields_that_mean_the_same_may_differ(published, tmp_path):
  """The config's own number format and rematerialisation are kept."""
  from ldm_jax.training.first_stage.start_autoencoder import begin_from

  trunk = dataclasses.replace(MODULE.trunk, dtype="bfloat16", remat="full")
  task = dataclasses.replace(TASK, autoencoder=MODULE.clone(trunk=trunk))
  begun, start = begin_from(experiment(published[0], task), MeshShape().build())
  assert begun.task.autoencoder.trunk == trunk
  jax.tree.map(
    np.testing.assert_array_equal, start["autoencoder"], published[1]
  )


def test_a_pipeline_a_file_and_a_second_stage_have_an_autoencoder(
  published, tmp_path
):
  path = str(tmp_path / "vae.safetensors")
  ldm_jax.save_single_file(MODULE, published[1], path)
  module, params, _ = open_autoencoder(path)
  assert module == MODULE
  jax.tree.map(np.testing.assert_array_equal, params, published[1])


def test_the_adversarial_weight_needs_the_last_kernel():
  with pytest.raises(ValueError, match="leaves out decoder/conv_out"):
    AutoencoderTask(trains=("decoder/up_0",))


def test_selecting_and_replacing_are_inverse(published):
  _, params = published
  doubled = jax.tree.map(lambda x: 2 * x, params)
  for prefixes in ((), ("decoder",), ("encoder/conv", "decoder/mid")):
    mixed = replace(params, select(doubled, prefixes))
    found = {f"{a}/{b}" for a, b in changed(params, mixed)}
    needed = {
      f"{side}/{name}"
      for side, modules in params["params"].items()
      for name in modules
      if f"{side}/{name}".startswith(tuple(prefixes) or ("",))
    }
    assert found == needed


@pytest.mark.parametrize(
  ("norm", "function"),
  [
    ("l1", np.abs),
    ("l2", np.square),
    ("charbonnier", lambda e: np.sqrt(e**2 + 1e-6)),
  ],
)
def test_weights_of_terms_change_with_the_step(norm, function):
  rng = np.random.default_rng(0)
  error, distance = rng.normal(size=(2, 4, 4, 3)), rng.uniform(size=2)
  loss = ReconstructionLoss(
    pixel_norm=norm,
    pixel_weight=2.0,
    perceptual_weight=0.5,
    schedules=(
      WeightSchedule("pixel", (10, 20), (1.0, 3.0)),
      WeightSchedule("perceptual", (5,), (0.25,)),
      WeightSchedule("pixel", (0,), (0.5,)),
    ),
  )
  for step, factor in ((0, 1), (10, 1), (15, 2), (20, 3), (90, 3)):
    found, metrics = loss.negative_log_likelihood(
      jnp.float32(error),
      jnp.float32(distance),
      jnp.float32(0.3),
      jnp.int32(step),
    )
    each = 2 * 0.5 * factor * function(error)
    each = each + 0.5 * 0.25 * distance[:, None, None, None]
    needed = (each / np.exp(0.3) + 0.3).sum() / 2
    np.testing.assert_allclose(found, needed, rtol=1e-5)
    np.testing.assert_allclose(metrics["l1"], np.abs(error).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    pixel_error(norm, jnp.float32(error)), function(error), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("steps", "factors", "message"),
  [
    ((), (), "0 steps"),
    ((1, 2), (1.0,), "for 1 factors"),
    ((2, 1), (1.0, 2.0), "ascend"),
  ],
)
def test_schedules_that_are_none(steps, factors, message):
  with pytest.raises(ValueError, match=message):
    WeightSchedule("pixel", steps, factors)
