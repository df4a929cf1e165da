"""Runs continue where a full disk refuses some of their files."""

import contextlib
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.errors import SaveFailed
from ldm_jax.runtime.checkpointing import checkpoint_saver
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.checkpoint_saver import (
  CheckpointSaver,
  check_disk_space,
)
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.image_files import write_png
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter, read_metrics


def state_of(step):
  rng = np.random.default_rng(step)
  array = rng.standard_normal((300, 300)).astype(np.float32)
  return {"x": jnp.asarray(array)}


@contextlib.contextmanager
def full(size=50_000):
  """No file may grow beyond `size`, as if the disk were full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def run(tmp_path):
  """A saver, its checkpoints 1 and 2, and their folder."""
  folder = str(tmp_path / "checkpoints")
  with (
    contextlib.closing(MetricWriter(str(tmp_path))) as writer,
    contextlib.closing(
      Checkpoints(folder, CheckpointPolicy(keep=5))
    ) as checkpoints,
  ):
    saver = CheckpointSaver(checkpoints, writer)
    for step in (1, 2):
      saver.save(step, state_of(step))
    saver.finish(2, state_of(2))
    yield saver, checkpoints, tmp_path


def wait_for_save(checkpoints):
  """Returns once the save in progress has succeeded or failed."""
  for _ in range(1000):
    if not checkpoints._manager.is_saving_in_progress():
      return
    time.sleep(0.01)
  raise AssertionError("the save never ends")


def assert_restored(checkpoints, step):
  shapes = jax.eval_shape(lambda: state_of(0))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found, state = checkpoints.restore_newest(shapes, {"x": place})
  assert found == step
  np.testing.assert_array_equal(state["x"], state_of(step)["x"])


def test_a_failed_save_is_detected_and_the_current_state_is_saved(run, caplog):
  saver, checkpoints, folder = run
  with full():
    saver.save(3, state_of(3))
    wait_for_save(checkpoints)
  for step in (4, 5):  # the disk has space again
    saver.check(step, state_of(step))
  saver.finish(4, state_of(4))
  assert checkpoints.steps == [2, 4]  # the older one was deleted
  assert_restored(checkpoints, 4)
  (record,) = caplog.records
  assert record.levelname == "WARNING"
  assert "step 3 is not saved in" in record.message
  assert "File too large" in record.message
  assert read_metrics(str(folder))[-1]["failed_saves"] == 1
  names = {path.name for path in (folder / "checkpoints").iterdir()}
  assert names == {"2", "4"}


def test_a_disk_that_stays_full_ends_the_run(run):
  saver, checkpoints, _ = run
  with full():
    saver.save(3, state_of(3))
    wait_for_save(checkpoints)
    saver.check(4, state_of(4))  # retried at once
    wait_for_save(checkpoints)
    saver.check(5, state_of(5))  # and then at the next regular one
    assert not checkpoints.is_saving
    saver.save(6, state_of(6))
    wait_for_save(checkpoints)
    with pytest.raises(SaveFailed, match="step 6 is not saved"):
      saver.check(7, state_of(7))
  assert_restored(checkpoints, 2)


def test_a_successful_save_resets_the_count_of_failures(run):
  saver, checkpoints, _ = run
  for step in range(10, 50, 10):
    with full():
      saver.save(step, state_of(step))
      wait_for_save(checkpoints)
    saver.check(step + 1, state_of(step + 1))
    wait_for_save(checkpoints)
    saver.check(step + 2, state_of(step + 2))
  assert_restored(checkpoints, 41)


def test_the_last_save_is_retried(run):
  saver, checkpoints, _ = run
  with full():
    saver.save(3, state_of(3))
    wait_for_save(checkpoints)
  saver.finish(3, state_of(3))
  assert_restored(checkpoints, 3)


def test_disk_space_is_checked_in_advance(tmp_path, monkeypatch):
  shapes = {"x": jax.ShapeDtypeStruct((250, 1000, 1000), jnp.float32)}  # 1 GB
  usage = shutil._ntuple_diskusage(0, 0, int(3.5e9))
  monkeypatch.setattr(checkpoint_saver.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(
    OSError, match=r"has 3.50 GB free, but 2 checkpoints of 1.00 GB .* 3.60"
  ):
    check_disk_space(str(tmp_path), shapes, 2)
  (tmp_path / "100").mkdir()  # one exists already
  check_disk_space(str(tmp_path), shapes, 2)


def test_lines_that_a_full_disk_refuses_are_not_lost(tmp_path, caplog):
  with contextlib.closing(MetricWriter(str(tmp_path))) as writer:
    writer.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full(size):  # for TensorBoard's file too, and for many lines
      for step in range(2, 60):
        writer.write(step, {"loss": float(step)})
    writer.write(60, {"loss": 60.0})
  losses = [line["loss"] for line in read_metrics(str(tmp_path))]
  assert losses == list(range(1, 61))
  assert caplog.text.count("its lines wait") == 1
  assert caplog.text.count("tracker TensorBoardFile is not used any more") == 1


def test_an_image_that_a_disk_refuses_is_named_and_removed(
  tmp_path,
):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  path = str(tmp_path / "a.png")
  with full(1000), pytest.raises(OSError, match=r"a\.png"):
    write_png(path, noise)
  assert not list(tmp_path.iterdir())


def test_a_last_state_that_cannot_be_saved_is_an_error(run):
  """The save fails at once, twice: no later save would have noticed it."""
  saver, checkpoints, _ = run
  refuse = lambda *_, **__: (_ for _ in ()).throw(OSError("no space"))
  original = checkpoints._manager.save
  checkpoints._manager.save = refuse
  saver.save(3, state_of(3))
  assert not checkpoints.is_saving
  with pytest.raises(SaveFailed, match="step 3 is not saved"):
    saver.finish(3, state_of(3))
  checkpoints._manager.save = original
  saver.finish(3, state_of(3))
  assert_restored(checkpoints, 3)


def test_a_line_that_is_written_in_part_is_completed_later(tmp_path, caplog):
  with contextlib.closing(MetricWriter(str(tmp_path))) as writer:
    writer.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full(size + 7):
      writer.write(2, {"loss": 2.0})
      assert (tmp_path / "metrics.jsonl").stat().st_size == size + 7
    writer.write(3, {"loss": 3.0})
  assert [line["loss"] for line in read_metrics(str(tmp_path))] == [1, 2, 3]
  assert "its lines wait" in caplog.text
