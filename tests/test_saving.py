"""Disks that fill up, and runs that go on."""

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
def parts(tmp_path):
  """Checkpoints 1 and 2, and who saves the next ones."""
  folder = str(tmp_path / "checkpoints")
  with (
    contextlib.closing(MetricWriter(str(tmp_path))) as journal,
    contextlib.closing(
      Checkpoints(folder, CheckpointPolicy(keep=5))
    ) as checkpoints,
  ):
    saver = CheckpointSaver(checkpoints, journal)
    for step in (1, 2):
      saver.save(step, state_of(step))
    saver.finish(2, state_of(2))
    yield saver, checkpoints, tmp_path


def settled(checkpoints):
  """Waits until it is known whether a save has succeeded, and not longer."""
  for _ in range(1000):
    if not checkpoints._manager.is_saving_in_progress():
      return
    time.sleep(0.01)
  raise AssertionError("it never ends")


def whole_of(checkpoints, step):
  shapes = jax.eval_shape(lambda: state_of(0))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found, state = checkpoints.restore_newest(shapes, {"x": place})
  assert found == step
  np.testing.assert_array_equal(state["x"], state_of(step)["x"])


def test_a_failed_save_is_noticed_and_the_state_of_the_time_saved(
  parts, capsys
):
  saver, checkpoints, folder = parts
  with full():
    saver.save(3, state_of(3))
    settled(checkpoints)
  for step in (4, 5):  # the disk has room again
    saver.check(step, state_of(step))
  saver.finish(4, state_of(4))
  assert checkpoints.steps == [2, 4]  # the older one made room
  whole_of(checkpoints, 4)
  said = capsys.readouterr().err
  assert "warning: step 3 is not saved in" in said and "File too large" in said
  assert read_metrics(str(folder))[-1]["failed_saves"] == 1
  names = {path.name for path in (folder / "checkpoints").iterdir()}
  assert names == {"2", "4"}


def test_a_disk_that_stays_full_ends_the_run(parts):
  saver, checkpoints, _ = parts
  with full():
    saver.save(3, state_of(3))
    settled(checkpoints)
    saver.check(4, state_of(4))  # tried again at once
    settled(checkpoints)
    saver.check(5, state_of(5))  # and then at the next regular one
    assert not checkpoints.is_saving
    saver.save(6, state_of(6))
    settled(checkpoints)
    with pytest.raises(SaveFailed, match="step 6 is not saved"):
      saver.check(7, state_of(7))
  whole_of(checkpoints, 2)


def test_successes_are_forgiven(parts):
  saver, checkpoints, _ = parts
  for step in range(10, 50, 10):
    with full():
      saver.save(step, state_of(step))
      settled(checkpoints)
    saver.check(step + 1, state_of(step + 1))
    settled(checkpoints)
    saver.check(step + 2, state_of(step + 2))
  whole_of(checkpoints, 41)


def test_the_last_save_is_tried_again(parts):
  saver, checkpoints, _ = parts
  with full():
    saver.save(3, state_of(3))
    settled(checkpoints)
  saver.finish(3, state_of(3))
  whole_of(checkpoints, 3)


def test_room_is_asked_for_before_anything_is_computed(tmp_path, monkeypatch):
  shapes = {"x": jax.ShapeDtypeStruct((250, 1000, 1000), jnp.float32)}  # 1 GB
  usage = shutil._ntuple_diskusage(0, 0, int(3.5e9))
  monkeypatch.setattr(checkpoint_saver.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(
    OSError, match=r"has 3.50 GB left, but 2 checkpoints of 1.00 GB .* 3.60"
  ):
    check_disk_space(str(tmp_path), shapes, 2)
  (tmp_path / "100").mkdir()  # one lies there already
  check_disk_space(str(tmp_path), shapes, 2)


def test_lines_that_a_full_disk_refuses_are_not_lost(tmp_path, capsys):
  with contextlib.closing(MetricWriter(str(tmp_path))) as journal:
    journal.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full(size):  # for TensorBoard's file too, and for many lines
      for step in range(2, 60):
        journal.write(step, {"loss": float(step)})
    journal.write(60, {"loss": 60.0})
  told = [line["loss"] for line in read_metrics(str(tmp_path))]
  assert told == list(range(1, 61))
  said = capsys.readouterr().err
  assert said.count("its lines wait") == 1
  assert said.count("no more for TensorBoard") == 1


def test_a_picture_that_a_disk_refuses_is_named_and_not_half_there(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  path = str(tmp_path / "a.png")
  with full(1000), pytest.raises(OSError, match=r"a\.png"):
    write_png(path, noise)
  assert not list(tmp_path.iterdir())


def test_a_last_state_that_is_nowhere_is_an_error(parts):
  """Refused at once, twice: no later save would have noticed."""
  saver, checkpoints, _ = parts
  refuse = lambda *_, **__: (_ for _ in ()).throw(OSError("no room"))
  whole = checkpoints._manager.save
  checkpoints._manager.save = refuse
  saver.save(3, state_of(3))
  assert not checkpoints.is_saving
  with pytest.raises(SaveFailed, match="step 3 is not saved"):
    saver.finish(3, state_of(3))
  checkpoints._manager.save = whole
  saver.finish(3, state_of(3))
  whole_of(checkpoints, 3)


def test_a_line_of_which_a_disk_takes_a_part_is_made_whole(tmp_path, capsys):
  with contextlib.closing(MetricWriter(str(tmp_path))) as journal:
    journal.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full(size + 7):
      journal.write(2, {"loss": 2.0})
      assert (tmp_path / "metrics.jsonl").stat().st_size == size + 7
    journal.write(3, {"loss": 3.0})
  assert [line["loss"] for line in read_metrics(str(tmp_path))] == [1, 2, 3]
  assert "its lines wait" in capsys.readouterr().err
