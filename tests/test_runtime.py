"""Checkpoints, metrics, signals and optimizers of a run."""

import dataclasses
import functools
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from PIL import Image

from ldm_jax.errors import NonFinite
from ldm_jax.runtime import image_files, signals
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter, read_metrics
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.runtime.signals import InterruptHandler, exit_code
from ldm_jax.training.trainer import Trainer


def test_the_latest_the_best_and_every_kth_checkpoint_are_kept(tmp_path):
  policy = CheckpointPolicy(
    every=1, keep=2, keep_every=4, best="psnr", best_is="max"
  )
  checkpoints = Checkpoints(str(tmp_path), policy)
  scores = [1, 2, 9, 3, 4, 5, 6, 7, 8, 0]
  for step, score in enumerate(scores, start=1):
    checkpoints.save(step, {"x": jnp.full(4, step)}, {"psnr": float(score)})
  checkpoints.wait()
  # 4 and 8 by every = 4, 3 by its score, 9 and 10 as the latest.
  assert checkpoints.steps == [3, 4, 8, 9, 10]
  assert checkpoints.latest == 10
  checkpoints.close()


def test_a_state_is_restored_bit_for_bit_on_another_mesh(tmp_path):
  rng = np.random.default_rng(0)
  state = {"a": jnp.asarray(rng.normal(size=(16, 8))), "n": jnp.int32(7)}
  state["h"] = state["a"].astype(jnp.bfloat16)
  meshes = [MeshShape(*shape).build() for shape in ((8, 1), (1, 8))]
  first, second = (
    jax.tree.map(lambda _, s=s: s.replicated, state) for s in meshes
  )
  sharded = second | {"a": meshes[1].batch}
  checkpoints = Checkpoints(str(tmp_path))
  checkpoints.save(3, jax.device_put(state, first))
  checkpoints.wait()
  shapes = jax.eval_shape(lambda: state)
  restored = checkpoints.restore(3, shapes, sharded)
  checkpoints.close()
  assert checksum(restored) == checksum(state)
  assert restored["a"].addressable_shards[0].data.shape == (2, 8)
  flipped = state | {"a": state["a"].at[3, 3].add(1e-6)}
  assert checksum(flipped) != checksum(state)


def test_metrics_beyond_the_restored_step_are_dropped(tmp_path):
  folder = str(tmp_path)
  writer = MetricWriter(folder)
  for step in (1, 2, 3):
    writer.write(step, {"loss": step / 10})
  writer.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 4, "lo')  # killed here
  writer = MetricWriter(folder, step=2)
  writer.write(3, {"loss": 0.5, "odd": float("nan")})
  writer.close()
  lines = read_metrics(folder)
  assert [line["step"] for line in lines] == [1, 2, 3]
  assert lines[2]["loss"] == 0.5 and lines[2]["odd"] is None
  seconds = [line["seconds"] for line in lines]
  assert seconds == sorted(seconds)


@pytest.fixture
def default_handlers():
  """Signal handlers of a new process; pytest workers ignore some signals."""
  default = {signal.SIGINT: signal.default_int_handler}
  default[signal.SIGTERM] = signal.SIG_DFL
  previous = {n: signal.signal(n, handler) for n, handler in default.items()}
  yield
  for number, handler in previous.items():
    signal.signal(number, handler)


def test_a_signal_is_stored_and_a_second_one_ends_the_process(default_handlers):
  with InterruptHandler() as interruption:
    assert exit_code(interruption.received) == 0
    os.kill(os.getpid(), signal.SIGINT)
    assert interruption.received == signal.SIGINT
    assert exit_code(interruption.received) == 130
    # test_faults.py sends a second signal.
    assert signal.getsignal(signal.SIGINT) is signals._exit_at_once
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  with InterruptHandler() as interruption:
    os.kill(os.getpid(), signal.SIGTERM)
    assert exit_code(interruption.received) == 143


class Falling:
  """A task that counts steps; its loss is NaN from step 5 on."""

  def init(self, key, batch, frozen):
    return Count(jnp.int32(0), jnp.zeros(8))

  def step(self, state, frozen, batch, key):
    step = state.step + 1
    drawn = jax.random.normal(key, (8,))
    return Count(step, state.x + drawn), {
      "loss": jnp.where(step >= 5, jnp.nan, 1.0 / step)
    }

  def measure(self, state, frozen, batch, key):
    return {"x": state.x.sum()}

  def preview(self, state, frozen, batch, key):
    return {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Count:
  """Steps, and the sum of all random numbers."""

  step: Any
  x: Any


def stream(start, hook=lambda step: None):
  step = start
  while True:
    hook(step)
    yield {"image": np.full((8, 1), step, np.float32)}
    step += 1


def make_trainer(tmp_path, steps):
  sharding = MeshShape().build()
  held_out = sharding.distribute({"image": np.zeros((8, 1), np.float32)})
  policy = CheckpointPolicy(every=2)
  trainer = Trainer(
    Falling(), sharding, str(tmp_path), steps, 0, policy, every=1
  )
  return trainer, held_out


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
  trainer, held_out = make_trainer(tmp_path, 9)
  with pytest.raises(NonFinite, match="loss at step 5 is not finite"):
    trainer.run(None, stream, held_out, held_out)
  checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
  assert checkpoints.latest == 4
  checkpoints.close()
  assert read_metrics(str(tmp_path))[-1]["loss"] is None


def test_a_run_resumed_after_a_signal_equals_an_uninterrupted_one(tmp_path):
  def hook(step):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  trainer, held_out = make_trainer(tmp_path / "cut", 4)
  outcome = trainer.run(None, lambda s: stream(s, hook), held_out, held_out)
  assert outcome.interrupted == signal.SIGTERM
  lines = read_metrics(str(tmp_path / "cut"))
  assert lines[-1]["step"] == outcome.step and 0 < outcome.step < 4
  assert trainer.run(None, stream, held_out, held_out).step == 4
  straight, held_out = make_trainer(tmp_path / "straight", 4)
  assert straight.run(None, stream, held_out, held_out).interrupted is None
  ends = [
    read_metrics(str(tmp_path / name))[-1]["validation_x"]
    for name in ("cut", "straight")
  ]
  assert ends[0] == ends[1]


def test_learning_rates():
  constant = Optimizer(rate=2.0, warmup=4).schedule()
  np.testing.assert_allclose([constant(i) for i in (0, 2, 4, 99)], [0, 1, 2, 2])
  cosine = Optimizer(rate=2.0, warmup=2, decay="cosine", decay_steps=10)
  rates = [float(cosine.schedule()(i)) for i in (0, 1, 2, 6, 10)]
  np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-6)
  with pytest.raises(ValueError, match="ends at decay_steps"):
    Optimizer(decay="cosine")


def test_adamw_equals_torchs():
  """One step from torch 2.13's AdamW: x = 1, g = .5, rate .1, decay .01."""
  tx = Optimizer(rate=0.1).build()
  x = jnp.float32(1.0)
  updates, _ = tx.update(jnp.float32(0.5), tx.init(x), x)
  # x (1 - .1 * .01) - .1 g / (|g| + 1e-8)
  np.testing.assert_allclose(optax.apply_updates(x, updates), 0.899, rtol=1e-6)


def test_muon_updates_kernels_equally_in_all_directions():
  """Along U V^T of the gradient U S V^T, as long as AdamW's update.

  Biases, embeddings, the first and the last convolution are updated by AdamW
  with Nesterov's momentum.
  """
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  gradient = {
    "conv_in": {"kernel": draw(3, 3, 4, 8)},
    "block": {"kernel": draw(3, 3, 4, 24), "bias": draw(8)},
    "tokens": {"embedding": draw(10, 4)},
  }
  params = jax.tree.map(jnp.zeros_like, gradient)
  optimizer = Optimizer(rate=0.1, weight_decay=0.0)
  nadam = optax.adamw(0.1, 0.9, 0.999, weight_decay=0.0, nesterov=True)
  updated = []
  for built in (nadam, dataclasses.replace(optimizer, muon=0.2).build()):
    updates, _ = built.update(gradient, built.init(params), params)
    updated.append(updates)
  adam, muon = updated
  kernel = np.asarray(muon["block"].pop("kernel")).reshape(36, 24)
  adam["block"].pop("kernel")
  same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(same, muon, adam)
  u, own, v = np.linalg.svd(
    np.asarray(gradient["block"]["kernel"]).reshape(36, 24),
    full_matrices=False,
  )
  sizes = np.diag(u.T @ -kernel @ v.T)  # in the gradient's own directions
  off = u.T @ -kernel @ v.T - np.diag(sizes)
  assert own.min() < 0.2 * own.max()
  assert sizes.min() > 0.5 * sizes.max()
  assert np.abs(off).max() < 0.1 * sizes.mean()
  # Liu et al. 2025, equation 4: rate * 0.2 * sqrt(longer side) U V^T.
  np.testing.assert_allclose(sizes.mean(), 0.2 * 0.2 * 6, rtol=0.2)
  with pytest.raises(ValueError, match=r"muon: needs above 0, got -1"):
    Optimizer(muon=-1.0)


def _optax_muon(optimizer):
  """The same optimizer as optax builds it, which traces each leaf."""

  def dimensions(params):
    wanted = optax.contrib.MuonDimensionNumbers((0,), 1)
    return jax.tree.map(lambda leaf: wanted if leaf.ndim == 2 else None, params)

  return optax.contrib.muon(
    optimizer.muon,
    ns_steps=3,
    preconditioning="aol",
    eps=optimizer.epsilon,
    weight_decay=optimizer.weight_decay,
    adam_b1=optimizer.betas[0],
    adam_b2=optimizer.betas[1],
    adam_weight_decay=optimizer.weight_decay,
    adam_learning_rate=optimizer.rate,
    muon_weight_dimension_numbers=dimensions,
    consistent_rms=0.2,
  )


def test_muon_is_optax_s_bit_for_bit():
  """Its state has the same tree, so that older checkpoints are read."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  params = {
    str(i): {"kernel": draw(*shape), "bias": draw(shape[1])}
    for i, shape in enumerate([(12, 5), (5, 12), (12, 5)])
  }
  optimizer = Optimizer(rate=0.1, muon=0.2)
  own, theirs = optimizer.build(), _optax_muon(optimizer)

  def trained(tx, inner):
    state, now = tx.init(params), params
    step = jax.jit(lambda now, state: tx.update(now, state, now))
    for _ in range(3):
      updates, state = step(now, state)
      now = optax.apply_updates(now, updates)
    return now, inner(state)

  own = trained(own, lambda state: state.inner)
  theirs = trained(theirs, lambda state: state)
  paths = lambda tree: [
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if leaf.ndim  # a schedule counts, a constant rate does not
  ]
  assert paths(own) == paths(theirs)
  arrays = [
    [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    for tree in (own, theirs)
  ]
  jax.tree.map(np.testing.assert_array_equal, *arrays)


def test_muon_is_traced_once_for_each_shape(monkeypatch):
  traced, inner = [], optax.contrib.scale_by_muon

  def counted(**options):
    made = inner(**options)

    def update(kernel, state):
      traced.append(kernel.shape)
      return made.update(kernel, state)

    return made._replace(update=update)

  monkeypatch.setattr(optax.contrib, "scale_by_muon", counted)
  shapes = [(7, 13), (7, 13), (13, 7), (3, 3, 7, 13), (3, 3, 7, 13)]
  kernels = {str(i): {"kernel": jnp.ones(s)} for i, s in enumerate(shapes)}
  tx = Optimizer(muon=0.2).build()
  step = lambda params: tx.update(params, tx.init(params), params)
  jax.eval_shape(step, kernels)
  assert sorted(traced) == sorted(set(shapes))


def test_clipping_keeps_the_direction_and_bounds_the_norm():
  def moments(clip, gradient):
    tx = Optimizer(clip=clip).build()
    _, state = tx.update(gradient, tx.init(gradient), gradient)
    return optax.tree.get(state, "mu")

  gradient = jnp.array([30.0, -40.0])
  mu = 0.1 * gradient  # (1 - beta_1) g
  np.testing.assert_allclose(moments(None, gradient), mu, rtol=1e-6)
  np.testing.assert_allclose(moments(5.0, gradient), mu / 10, rtol=1e-6)
  np.testing.assert_allclose(moments(60.0, gradient), mu, rtol=1e-6)


def test_image_grids_and_png_metadata(tmp_path):
  images = np.zeros((5, 32, 32, 3), np.uint8)
  images[:, :, :, 0] = np.arange(5)[:, None, None] * 50
  sheet = image_files.image_grid(images)
  assert sheet.shape == (2 * 64 + 2, 3 * 64 + 2 * 2, 3)
  assert sheet[0, 66, 0] == 50 and sheet[66, 0, 0] == 150
  captioned = image_files.image_grid(images, ["a red circle"] * 5, columns=5)
  assert captioned.shape[0] > 128 and captioned.shape[1] == 5 * 128 + 4 * 2
  path = str(tmp_path / "deep" / "x.png")
  image_files.write_png(path, sheet, {"ldm_jax": '{"prompt": "é"}'})
  opened = Image.open(path)
  assert opened.text["ldm_jax"] == '{"prompt": "é"}'
  np.testing.assert_array_equal(np.asarray(opened), sheet)
  assert os.listdir(tmp_path / "deep") == ["x.png"]
