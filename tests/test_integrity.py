"""Damaged checkpoints are detected and never used."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full import repeated
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from ldm_jax.cli import verify
from ldm_jax.errors import DamagedFile, NonFinite
from ldm_jax.files.file_lock import OutputLocked
from ldm_jax.runtime.checkpointing import host_sums, read_checkpoints, tree_io
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.checksums import (
  _sums,
  checksum,
  checksums,
)
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.folder_lock import folder_lock

STEPS, POLICY = (1, 2, 3), CheckpointPolicy(keep=9, best="loss")

# Orbax leaves coroutines behind where it fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore::RuntimeWarning",
)


def state_of(step):
  rng = np.random.default_rng(step)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  return {
    "params": {"kernel": draw(64, 96), "bias": draw(24)},
    "half": draw(8, 8).astype(jnp.bfloat16),
    "step": jnp.int32(step),
    "is_odd": jnp.asarray([step % 2 == 1, False]),
  }


SHAPES = jax.eval_shape(lambda: state_of(1))
PLACES = jax.tree.map(
  lambda _: MeshShape().build(jax.devices()[:1]).replicated, SHAPES
)


@pytest.fixture
def folder(tmp_path):
  """Three checkpoints."""
  path = tmp_path / "run" / "checkpoints"
  with contextlib.closing(Checkpoints(str(path), POLICY)) as checkpoints:
    for step in STEPS:
      checkpoints.save(step, state_of(step), {"loss": float(step)})
  return path


def restore_newest(path, save_after=False):
  with contextlib.closing(Checkpoints(str(path), POLICY)) as checkpoints:
    step, state = checkpoints.restore_newest(SHAPES, PLACES)
    if save_after:
      checkpoints.save(9, state_of(9), {"loss": 0.5})
    return step, state


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"]
)
def test_any_changed_bit_changes_the_checksum(dtype):
  rng = np.random.default_rng(0)
  array = np.asarray(jnp.asarray(rng.integers(0, 2, (5, 7)), dtype))
  before = checksums(array).leaves[""]
  raw = array.reshape(-1).view(np.uint8)
  for bit in rng.choice(8 * raw.size, 40, replace=False):
    changed = raw.copy()
    changed[bit // 8] ^= 1 << (bit % 8 if dtype != "bool" else 0)
    changed = changed.view(array.dtype).reshape(array.shape)
    assert checksums(changed).leaves[""] != before
  swapped = array.copy()
  swapped[0, 0], swapped[4, 6] = 1, 0
  other = swapped.copy()
  other[0, 0], other[4, 6] = 0, 1
  assert checksums(swapped).leaves[""] != checksums(other).leaves[""]
  assert checksums(array.reshape(7, 5)).leaves[""] != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (24,), (16, 3, 8)])
def test_numpy_and_devices_compute_the_same_sums(dtype, shape, monkeypatch):
  monkeypatch.setattr(host_sums, "BLOCK", 64)
  rng = np.random.default_rng(3)
  array = jnp.asarray(rng.standard_normal(shape) > 0, dtype)
  if dtype in ("float32", "bfloat16"):
    array = jnp.asarray(rng.standard_normal(shape), dtype)
  expected = _sums(array)
  np.testing.assert_array_equal(host_sums.sums(array), expected)
  np.testing.assert_array_equal(host_sums.sums(np.asarray(array)), expected)
  if array.size and array.ndim:
    sharding = MeshShape(data=2, fsdp=4).build()
    spec = jax.P("fsdp") if array.ndim == 1 else jax.P("data", None, "fsdp")
    put = jax.device_put(array, jax.NamedSharding(sharding.mesh, spec))
    np.testing.assert_array_equal(host_sums.sums(put), expected)


def test_numpy_and_devices_find_numbers_that_are_not_finite():
  array = jnp.asarray([[1.0, np.inf], [np.nan, 2.0]])
  np.testing.assert_array_equal(host_sums.sums(array), _sums(array))
  assert checksums({"a": array, "b": jnp.ones_like(array)}).non_finite == ("a",)


def test_a_checksum_is_the_same_on_every_mesh():
  rng = np.random.default_rng(0)
  array = rng.standard_normal((16, 8, 24)).astype(np.float32)
  alone = checksum({"a": array})
  for mesh in ((8, 1), (1, 8), (2, 4), (2, 2, 2)):
    sharding = MeshShape(*mesh).build()
    for place in (sharding.batch, sharding.replicated):
      assert checksum({"a": jax.device_put(array, place)}) == alone
  assert checksum({"b": array}) != alone


def test_a_state_that_is_not_finite_is_not_saved(folder):
  with contextlib.closing(
    Checkpoints(str(folder), CheckpointPolicy(keep=9))
  ) as checkpoints:
    state = state_of(4)
    state["params"]["bias"] = state["params"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(NonFinite, match="params/bias"):
      checkpoints.save(4, state)
    assert checkpoints.steps == list(STEPS)


def test_the_newest_intact_checkpoint_is_restored(folder):
  step, state = restore_newest(folder)
  assert step == 3 and checksum(state) == checksum(state_of(3))


@pytest.mark.parametrize("part", ["state", "subtree"])
def test_replicated_arrays_are_read_once_for_all_devices(
  folder, part, monkeypatch
):
  monkeypatch.setattr(tree_io, "_SMALL", 64 * 96)  # bytes; the kernel has more
  sharding = MeshShape(data=4, fsdp=2).build()
  by_fsdp = NamedSharding(sharding.mesh, PartitionSpec("fsdp"))
  places = jax.tree.map(lambda _: sharding.replicated, SHAPES)
  places["params"]["kernel"] = by_fsdp
  target = jax.tree.map(
    lambda leaf, place: leaf.update(sharding=place), SHAPES, places
  )
  read = tree_io.read_once(target)
  is_host = jax.tree.map(lambda leaf: isinstance(leaf, np.ndarray), read)
  assert not is_host["params"].pop("kernel")
  alone = tree_io.read_once(
    {
      "large": jax.ShapeDtypeStruct(
        (64, 97), np.uint8, sharding=sharding.replicated
      )
    }
  )
  assert not isinstance(alone["large"], np.ndarray)
  assert all(jax.tree.leaves(is_host))
  if part == "subtree":
    step, found = read_checkpoints.restore_newest_subtree(str(folder), target)
  else:
    with contextlib.closing(Checkpoints(str(folder), POLICY)) as checkpoints:
      step, found = checkpoints.restore_newest(SHAPES, places)
  assert step == STEPS[-1]
  jax.tree.map(np.testing.assert_array_equal, found, state_of(step))
  assert jax.tree.map(lambda x: x.sharding, found) == places
  assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(
    lambda x: x.dtype, SHAPES
  )
  rows = found["half"].addressable_shards
  assert len(rows) == 8
  for shard in rows:
    np.testing.assert_array_equal(shard.data, state_of(step)["half"])


@pytest.mark.parametrize("devices", [1, 8])
def test_arrays_of_another_shape_are_damage_on_any_mesh(folder, devices):
  sharding = MeshShape().build(jax.devices()[:devices])
  shapes = {**SHAPES, "is_odd": jax.ShapeDtypeStruct((3,), bool)}
  places = jax.tree.map(lambda _: sharding.replicated, shapes)
  with (
    contextlib.closing(Checkpoints(str(folder), POLICY)) as checkpoints,
    pytest.raises(DamagedFile, match="shape"),
  ):
    checkpoints.restore(STEPS[-1], shapes, places)


def flip(path, rng):
  """Changes one bit of a file."""
  raw = bytearray(path.read_bytes())
  place = int(rng.integers(8 * len(raw)))
  raw[place // 8] ^= 1 << place % 8
  path.write_bytes(bytes(raw))


def files_of(folder, step):
  files = [p for p in (folder / str(step)).rglob("*") if p.is_file()]
  return sorted(p for p in files if p.stat().st_size)


def falls_back(source, work, damage, caplog):
  """Damages a copy, restores it and saves; whether step 2 was restored."""
  shutil.rmtree(work, ignore_errors=True)
  shutil.copytree(source, work / "checkpoints")
  damage(work / "checkpoints")
  caplog.clear()
  step, state = restore_newest(work / "checkpoints", save_after=True)
  assert checksum(state) == checksum(state_of(step))
  is_fallback = step == 2
  assert (work / "damaged" / "3").exists() == is_fallback
  assert ("; using step 2" in caplog.text) == is_fallback
  return is_fallback


@pytest.mark.parametrize("kind", ["empty", "cut", "gone"])
def test_damaged_files_are_detected_and_the_previous_step_is_used(
  folder, tmp_path, kind, caplog
):
  fallbacks = 0
  files = files_of(folder, 3)
  for path in files:

    def damage(copy, path=path):
      target = copy / path.relative_to(folder)
      if kind == "gone":
        target.unlink()
      else:
        raw = target.read_bytes()
        target.write_bytes(raw[: len(raw) // 2 if kind == "cut" else 0])

    fallbacks += falls_back(folder, tmp_path / "work", damage, caplog)
  assert fallbacks >= 4  # of the files that hold the state and its checksums


def test_flipped_bits_are_detected_and_the_previous_step_is_used(
  folder, tmp_path, caplog
):
  assert flips(folder, tmp_path, 40, caplog) > 20


@pytest.mark.slow
def test_five_hundred_flipped_bits(folder, tmp_path, caplog):
  count = repeated(500)
  assert flips(folder, tmp_path, count, caplog) > 0.6 * count


def flips(folder, tmp_path, count, caplog):
  """How many of `count` single flips caused a fallback."""
  rng, fallbacks = np.random.default_rng(7), 0
  files = files_of(folder, 3)
  for _ in range(count):
    # Every bit is equally likely, not every file.
    sizes = np.array([path.stat().st_size for path in files], float)
    path = files[rng.choice(len(files), p=sizes / sizes.sum())]
    fallbacks += falls_back(
      folder,
      tmp_path / "work",
      lambda copy, path=path: flip(copy / path.relative_to(folder), rng),
      caplog,
    )
  return fallbacks


def test_a_restart_keeps_the_best_checkpoint(tmp_path):
  policy, losses = (
    CheckpointPolicy(keep=1, best="loss"),
    [0.1, 0.5, 0.6, 0.7, 0.8],
  )
  for steps in ((1, 2, 3), (4, 5)):
    with contextlib.closing(Checkpoints(str(tmp_path), policy)) as checkpoints:
      for step in steps:
        checkpoints.save(step, state_of(step), {"loss": losses[step - 1]})
      checkpoints.wait()
      assert checkpoints.steps == [1, steps[-1]]


def test_pruning_keeps_the_newest_the_best_and_every_kth(tmp_path):
  policy = CheckpointPolicy(keep=9, keep_every=3, best="loss")
  with contextlib.closing(Checkpoints(str(tmp_path), policy)) as checkpoints:
    for step, loss in enumerate([0.5, 0.1, 0.3, 0.4, 0.6], 1):
      checkpoints.save(step, state_of(step), {"loss": loss})
    checkpoints.wait()
    checkpoints.prune()
    assert checkpoints.steps == [2, 3, 5]
    checkpoints.prune()
    assert checkpoints.steps == [2, 3, 5]


def test_damaged_metrics_do_not_block_a_restart(tmp_path, caplog):
  """Metrics only decide which checkpoints are kept."""
  path, policy = (
    tmp_path / "checkpoints",
    CheckpointPolicy(keep=9, best="loss"),
  )
  with contextlib.closing(Checkpoints(str(path), policy)) as checkpoints:
    for step in STEPS:
      checkpoints.save(step, state_of(step), {"loss": float(step)})
  (path / "3" / "metrics" / "metrics").write_bytes(b"{")
  (path / "2" / "metrics" / "metrics").unlink()
  with contextlib.closing(Checkpoints(str(path), policy)) as checkpoints:
    assert checkpoints.restore_newest(SHAPES, PLACES)[0] == 3
    checkpoints.save(4, state_of(4), {"loss": 4.0})
  for step in (2, 3):
    assert f"metrics of step {step} cannot be read" in caplog.text
  caplog.clear()
  with contextlib.closing(Checkpoints(str(path), policy)) as checkpoints:
    assert checkpoints.restore_newest(SHAPES, PLACES)[0] == 4
  assert caplog.text == ""
  names = {p.name for p in (tmp_path / "damaged").iterdir()}
  assert names == {"2_metrics", "3_metrics"}


def test_if_no_checkpoint_is_intact_nothing_is_moved(folder):
  for step in STEPS:
    shutil.rmtree(folder / str(step) / "state")
  with pytest.raises(
    DamagedFile, match="none of 3 checkpoints is intact: step 3"
  ):
    restore_newest(folder)
  assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]


def test_a_damaged_step_can_be_saved_again(folder):
  shutil.rmtree(folder / "3" / "digests")
  with contextlib.closing(
    Checkpoints(str(folder), CheckpointPolicy(keep=9))
  ) as checkpoints:
    assert checkpoints.restore_newest(SHAPES, PLACES)[0] == 2
    checkpoints.save(3, state_of(3))
  assert restore_newest(folder)[0] == 3
  shutil.rmtree(folder / "3" / "digests")
  assert restore_newest(folder)[0] == 2
  aside = pathlib.Path(folder).parent / "damaged"
  assert sorted(p.name for p in aside.iterdir()) == ["3", "3-1"]


def test_a_subtree_is_verified_without_the_rest(folder):
  target = {"params": SHAPES["params"]}
  placed = jax.tree.map(
    lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
    target,
    {"params": PLACES["params"]},
  )
  step, part = read_checkpoints.restore_newest_subtree(str(folder), placed)
  assert step == 3
  np.testing.assert_array_equal(
    part["params"]["kernel"], state_of(3)["params"]["kernel"]
  )
  path = folder / "3" / "digests" / "metadata"
  stored = json.loads(path.read_text())
  stored["params/kernel"] = stored["params/kernel"][:-1] + "x"
  path.write_text(json.dumps(stored))
  assert read_checkpoints.restore_newest_subtree(str(folder), placed)[0] == 2


def test_trees_outside_checkpoints_are_verified(tmp_path):
  tree = {"vgg": state_of(1)["params"], "none": None}
  path = tmp_path / "frozen"
  tree_io.save_tree(str(path), tree)
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )
  assert checksum(tree_io.load_tree(str(path), target)) == checksum(tree)
  assert tree_io.verify_tree(str(path), "frozen")[0] is None
  stored = path / "digests" / "metadata"
  stored.write_text(stored.read_text().replace("vgg/bias", "vgg/base"))
  with pytest.raises(DamagedFile, match=r"frozen: wrong checksum of vgg/bias"):
    tree_io.load_tree(str(path), target)
  assert "vgg/bias" in tree_io.verify_tree(str(path), "frozen")[0]


def test_verify_lists_every_step(folder, capsys):
  run = folder.parent
  tree_io.save_tree(str(run / "frozen"), {"x": jnp.arange(3.0)})
  listed = list(read_checkpoints.verify_checkpoints(str(folder)))
  assert [(step, wrong) for step, wrong, _ in listed] == [
    (step, None) for step in STEPS
  ]
  for step, _, leaves in listed:
    assert leaves == checksums(state_of(step)).leaves
  with pytest.raises(Exception, match="is no run folder"):
    verify.main([str(run)])


HOLDER = """
import sys, time
from ldm_jax.runtime.folder_lock import folder_lock
with folder_lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


def test_files_of_an_interrupted_write_are_removed(tmp_path):
  folder = tmp_path / "frozen"
  tree_io.save_tree(str(folder), {"a": jnp.arange(3.0)})
  (tmp_path / "frozen.orbax-checkpoint-tmp-7").mkdir()
  tree_io.save_tree(str(folder), {"a": jnp.arange(4.0)})
  place = SingleDeviceSharding(jax.devices()[0])
  expected = {"a": jax.ShapeDtypeStruct((4,), np.float32, sharding=place)}
  found = tree_io.load_tree(str(folder), expected)
  np.testing.assert_array_equal(found["a"], np.arange(4.0))
  assert [path.name for path in tmp_path.iterdir()] == ["frozen"]


def test_a_run_folder_has_one_writer(tmp_path):
  run = tmp_path / "run"
  with folder_lock(str(run)) as previous:
    assert previous is None
    (run / "config.json").write_text("{}")
    # A lock object of its own, as another process has it.
    message = f"is written by process {os.getpid()} on .*choose another"
    with pytest.raises(OutputLocked, match=message), folder_lock(str(run)):
      raise AssertionError
  with folder_lock(str(run)) as previous:
    assert previous is None
  with subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE
  ) as other:
    other.stdout.readline()
    with (
      pytest.raises(OutputLocked, match=f"process {other.pid} "),
      folder_lock(str(run)),
    ):
      raise AssertionError
    other.kill()
  with folder_lock(str(run)) as previous:  # of a killed process
    assert previous["pid"] == other.pid
  with pytest.raises(KeyError), folder_lock(str(tmp_path / "new")):
    raise KeyError
  assert not (tmp_path / "new").exists()  # nothing was written there


@pytest.mark.parametrize(
  "error",
  [NotImplementedError("no flock"), OSError(errno.ENOTSUP, "not supported")],
)
def test_a_file_system_without_locks_gives_a_warning(
  tmp_path, error, monkeypatch, caplog
):
  def refuse(self, *_, **__):
    raise error

  monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
  with folder_lock(str(tmp_path / "run")):
    assert (tmp_path / "run" / "lock.json").exists()
  (record,) = caplog.records
  assert record.levelno == logging.WARNING
  assert "its file system has no locks" in record.message


def test_an_empty_folder_is_not_a_checkpoint(folder):
  (folder / "99").mkdir()
  assert read_checkpoints.latest_step(str(folder)) == max(STEPS)
  with contextlib.closing(Checkpoints(str(folder))) as checkpoints:
    assert checkpoints.latest == max(STEPS)
  assert (folder.parent / "damaged" / "99").is_dir()
