"""FLOP counts, step timing, profiles, and steps without hidden transfers."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runtime import Count, make_trainer, stream

from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.cli.train import main
from ldm_jax.nn.layers import conv
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring import flops
from ldm_jax.runtime.monitoring.metric_writer import read_metrics
from ldm_jax.runtime.monitoring.step_timer import StepTimer
from ldm_jax.training.compiled_steps import CompiledTask
from ldm_jax.training.trainer import Trainer


def product(a, b):
  return (a @ b).sum()


def test_matrix_products_are_counted_and_their_gradients_cost_twice():
  a, b = jnp.zeros((4, 8)), jnp.zeros((8, 16))
  once = 2 * 4 * 8 * 16
  assert flops.count(product, a, b) == once
  assert flops.count(jax.grad(product, (0, 1)), a, b) == 3 * once
  shapes = jax.eval_shape(lambda: (a, b))
  assert flops.count(jax.jit(product), *shapes) == once


class Product:
  """A task whose step is one matrix product with its batch."""

  def init(self, key, batch, frozen):
    return Count(jnp.int32(0), jnp.ones((16, 32)))

  def step(self, state, frozen, batch, key):
    loss = (batch["image"] @ state.x).mean()
    return Count(state.step + 1, state.x), {"loss": loss}

  def measure(self, state, frozen, batch, key):
    return {"x": state.x.sum()}

  def preview(self, state, frozen, batch, key):
    return {}


def test_utilisation_is_computed_for_the_training_batch(tmp_path, monkeypatch):
  """The number of held-out examples does not matter."""
  monkeypatch.setattr(flops, "peak", lambda kind: 1e9)
  sharding = MeshShape().build()
  held_out = sharding.distribute({"image": np.ones((8, 16), np.float32)})
  trainer = Trainer(
    Product(), sharding, str(tmp_path), 6, every=1, previews_every=0
  )

  def wide(step):
    while True:
      yield {"image": np.ones((64, 16), np.float32)}

  assert trainer.run(None, wide, held_out, held_out).step == 6
  *_, last = (line for line in read_metrics(str(tmp_path)) if "mfu" in line)
  each = last["mfu"] / last["images_per_second"]
  assert each == pytest.approx(2 * 16 * 32 / (1e9 * 8), rel=1e-6)


def test_the_body_of_a_scan_counts_times_its_length():
  x, w = jnp.zeros((4, 8)), jnp.zeros((10, 8, 8))
  once = 2 * 4 * 8 * 8

  def loop(x, w):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0].sum()

  assert flops.count(loop, x, w) == 10 * once
  assert flops.count(jax.grad(loop, (0, 1)), x, w) == 30 * once
  remat = jax.checkpoint(lambda x, w: jnp.tanh(x @ w[0]) @ w[1])
  # The gradient, and the first product once more.
  grad = jax.grad(lambda x, w: remat(x, w).sum(), (0, 1))
  assert flops.count(grad, x, w) in (7 * once, 8 * once)


def test_the_costlier_branch_counts():
  x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))

  def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x)

  assert flops.count(either, x, w) == 2 * 2 * 4 * 8 * 8


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_convolutions_and_their_gradients_are_counted(stride, groups):
  x, kernel = jnp.zeros((2, 8, 8, 16)), jnp.zeros((3, 3, 16 // groups, 32))

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    ).sum()

  side = 8 // stride
  once = 2 * (2 * side * side * 32) * 9 * 16 // groups
  assert flops.count(convolve, x, kernel) == once
  assert flops.count(jax.grad(convolve, (0, 1)), x, kernel) == 3 * once


def test_the_longest_matching_device_name_gives_the_peak():
  assert flops.peak("NVIDIA H100 80GB HBM3") == 989e12
  assert flops.peak("TPU v5 lite") == 197e12 and flops.peak("TPU v5p") == 459e12
  assert flops.peak("cpu") is None


def test_a_slow_stream_is_reported_as_input_starvation():
  work = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, x: x @ x, x))
  x = jnp.eye(300) * 0.5
  metrics = []
  for wait in (0.0, 0.3):

    def slow(wait=wait):
      while True:
        time.sleep(wait)
        yield x

    timer = StepTimer(batch_size=4)
    stream = timer.time_input(slow())
    for _ in range(6):
      timer.dispatched(work(next(stream)))
    metrics.append(timer.metrics())
    timer.close()
  fast, slow = metrics
  assert slow["input_starved"] > 0.5 > fast["input_starved"]
  assert slow["images_per_second"] < fast["images_per_second"]
  assert fast["step_seconds_p50"] <= fast["step_seconds_p95"]


class Counted:
  """A task that counts how often its step is traced."""

  def __init__(self, task):
    self.task, self.traces = task, 0
    self.init, self.measure = task.init, task.measure
    self.preview = task.preview

  def step(self, state, frozen, batch, key):
    self.traces += 1
    state = Count(state.step + 1, state.x + jax.random.normal(key, (8,)))
    return state, {"loss": batch["image"].mean()}


def test_nothing_is_recompiled_or_transferred_implicitly(tmp_path):
  """The trainer runs steps under a transfer guard, which would raise."""
  trainer, held_out = make_trainer(tmp_path / "run", 6)
  task = Counted(trainer.task)
  object.__setattr__(trainer, "task", task)
  assert trainer.run(None, stream, held_out, held_out).step == 6
  assert task.traces == 1
  lines = [
    line for line in read_metrics(str(tmp_path / "run")) if "loss" in line
  ]
  np.testing.assert_allclose(
    [line["loss"] for line in lines], np.arange(6), atol=1e-6
  )
  assert lines[-1]["images_per_second"] > 0
  assert 0 <= lines[-1]["input_starved"] <= 1


def test_the_transfer_guard_detects_an_array_of_the_host(tmp_path):
  """Shows that the guard of the test above raises."""
  trainer, held_out = make_trainer(tmp_path, 6)
  task = Counted(trainer.task)
  compiled = CompiledTask(task, trainer.sharding, 0, None, held_out)
  state = compiled.init(held_out)
  state, _ = compiled.step(state, held_out)
  host = {"image": np.asarray(held_out["image"])}
  with jax.transfer_guard("disallow"):
    state, _ = compiled.step(state, held_out)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
      compiled.step(state, host)


def test_chosen_steps_are_profiled(tmp_path):
  trainer, held_out = make_trainer(tmp_path, 4)
  object.__setattr__(trainer, "profile", (2, 3))
  assert trainer.run(None, stream, held_out, held_out).step == 4
  files = [f for _, _, names in os.walk(tmp_path / "profile") for f in names]
  assert any(name.endswith(".xplane.pb") for name in files)


@pytest.mark.parametrize("text", ["3", "5:2", "0:4", "a:b"])
def test_invalid_ranges_of_profiled_steps_are_refused(text, tmp_path):
  flags = ["--config=configs/glyphs_text.py", f"--workdir={tmp_path}"]
  with pytest.raises(CommandError, match="takes the first and") as caught:
    main([*flags, f"--profile={text}"])
  assert caught.value.code == 2


def test_the_count_of_a_flax_module_equals_that_by_hand():
  """A 3 x 3 convolution from 8 to 16 channels."""
  import flax.linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return conv(x, 16, name="conv", dtype="float32")

  x = jnp.zeros((2, 8, 8, 8))
  params = jax.eval_shape(Net().init, jax.random.key(0), x)
  assert flops.count(Net().apply, params, x) == 2 * (2 * 64 * 16) * 9 * 8


def test_what_follows_the_last_step_is_logged(tmp_path, caplog):
  caplog.set_level("INFO")
  trainer, held_out = make_trainer(tmp_path, 2)
  assert trainer.run(None, stream, held_out, held_out).step == 2
  lines = [line for line in caplog.messages if line.endswith(" ...")]
  assert [line.split()[0] for line in lines] == [
    "compiling",  # the initialisation
    "compiling",  # the step
    "measuring",
    "making",  # a preview
    "saving",
  ]
  assert lines[-1] == "saving the checkpoint of step 2 ..."
