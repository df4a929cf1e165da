"""What is on disk is what was saved, or it is not used."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full import repeated
from jax.sharding import SingleDeviceSharding

from ldm_jax.cli import verify
from ldm_jax.errors import DamagedFile, NonFinite
from ldm_jax.runtime.checkpointing import checkpoint, tree_io
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.checksums import checksum, checksums
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.checkpointing.run_lock import RunLocked, run_lock
from ldm_jax.runtime.devices.sharding import MeshShape

STEPS, KEEPING = (1, 2, 3), CheckpointPolicy(keep=9, best="loss")

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
  with contextlib.closing(Checkpoints(str(path), KEEPING)) as kept:
    for step in STEPS:
      kept.save(step, state_of(step), {"loss": float(step)})
  return path


def newest(path, goes_on=False):
  with contextlib.closing(Checkpoints(str(path), KEEPING)) as kept:
    step, state = kept.restore_newest(SHAPES, PLACES)
    if goes_on:
      kept.save(9, state_of(9), {"loss": 0.5})
    return step, state


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"]
)
def test_any_changed_bit_changes_a_digest(dtype):
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


def test_a_digest_is_the_same_on_every_mesh():
  rng = np.random.default_rng(0)
  array = rng.standard_normal((16, 8, 24)).astype(np.float32)
  alone = checksum({"a": array})
  for mesh in ((8, 1), (1, 8), (2, 4), (2, 2, 2)):
    sharding = MeshShape(*mesh).build()
    for place in (sharding.batch, sharding.replicated):
      assert checksum({"a": jax.device_put(array, place)}) == alone
  assert checksum({"b": array}) != alone


def test_what_is_no_number_is_not_saved(folder):
  with contextlib.closing(
    Checkpoints(str(folder), CheckpointPolicy(keep=9))
  ) as kept:
    odd = state_of(4)
    odd["params"]["bias"] = odd["params"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(NonFinite, match="params/bias"):
      kept.save(4, odd)
    assert kept.steps == list(STEPS)


def test_a_whole_checkpoint_is_the_newest(folder):
  step, state = newest(folder)
  assert step == 3 and checksum(state) == checksum(state_of(3))


def flip(path, rng):
  """Changes one bit of a file."""
  raw = bytearray(path.read_bytes())
  place = int(rng.integers(8 * len(raw)))
  raw[place // 8] ^= 1 << place % 8
  path.write_bytes(bytes(raw))


def files_of(folder, step):
  files = [p for p in (folder / str(step)).rglob("*") if p.is_file()]
  return sorted(p for p in files if p.stat().st_size)


def survives(source, work, damage):
  """Restores what is left after `damage`, and saves; whether it fell back."""
  shutil.rmtree(work, ignore_errors=True)
  shutil.copytree(source, work / "checkpoints")
  damage(work / "checkpoints")
  with contextlib.redirect_stderr(io.StringIO()) as told:
    step, state = newest(work / "checkpoints", goes_on=True)
  assert checksum(state) == checksum(state_of(step))
  fell = step == 2
  assert (work / "damaged" / "3").exists() == fell
  assert ("; using step 2" in told.getvalue()) == fell
  return fell


@pytest.mark.parametrize("kind", ["empty", "cut", "gone"])
def test_damaged_files_are_noticed_and_the_step_before_is_used(
  folder, tmp_path, kind
):
  fell = 0
  files = files_of(folder, 3)
  for path in files:

    def damage(copy, path=path):
      target = copy / path.relative_to(folder)
      if kind == "gone":
        target.unlink()
      else:
        raw = target.read_bytes()
        target.write_bytes(raw[: len(raw) // 2 if kind == "cut" else 0])

    fell += survives(folder, tmp_path / "work", damage)
  assert fell >= 4  # of the files that hold the state and its digests


def test_flipped_bits_are_noticed_and_the_step_before_is_used(folder, tmp_path):
  assert flips(folder, tmp_path, 40) > 20


@pytest.mark.slow
def test_five_hundred_flipped_bits(folder, tmp_path):
  count = repeated(500)
  assert flips(folder, tmp_path, count) > 0.6 * count


def flips(folder, tmp_path, count):
  """How many of so many single flips made it use the step before; the others
  did no harm."""
  rng, fell = np.random.default_rng(7), 0
  files = files_of(folder, 3)
  for _ in range(count):
    # Alike for every bit, not for every file.
    sizes = np.array([path.stat().st_size for path in files], float)
    path = files[rng.choice(len(files), p=sizes / sizes.sum())]
    fell += survives(
      folder,
      tmp_path / "work",
      lambda copy, path=path: flip(copy / path.relative_to(folder), rng),
    )
  return fell


def test_a_restart_remembers_the_best(tmp_path):
  keeping, losses = (
    CheckpointPolicy(keep=1, best="loss"),
    [0.1, 0.5, 0.6, 0.7, 0.8],
  )
  for steps in ((1, 2, 3), (4, 5)):
    with contextlib.closing(Checkpoints(str(tmp_path), keeping)) as kept:
      for step in steps:
        kept.save(step, state_of(step), {"loss": losses[step - 1]})
      kept.wait()
      assert kept.steps == [1, steps[-1]]


def test_the_best_does_not_make_room(tmp_path):
  keeping = CheckpointPolicy(keep=9, keep_every=3, best="loss")
  with contextlib.closing(Checkpoints(str(tmp_path), keeping)) as kept:
    for step, loss in enumerate([0.5, 0.1, 0.3, 0.4, 0.6], 1):
      kept.save(step, state_of(step), {"loss": loss})
    kept.wait()
    kept.prune()
    assert kept.steps == [2, 3, 5]
    kept.prune()
    assert kept.steps == [2, 3, 5]


def test_damaged_metrics_bar_nobody(tmp_path, capsys):
  """They only say which checkpoint stays."""
  path, keeping = (
    tmp_path / "checkpoints",
    CheckpointPolicy(keep=9, best="loss"),
  )
  with contextlib.closing(Checkpoints(str(path), keeping)) as kept:
    for step in STEPS:
      kept.save(step, state_of(step), {"loss": float(step)})
  (path / "3" / "metrics" / "metrics").write_bytes(b"{")
  (path / "2" / "metrics" / "metrics").unlink()
  with contextlib.closing(Checkpoints(str(path), keeping)) as kept:
    assert kept.restore_newest(SHAPES, PLACES)[0] == 3
    kept.save(4, state_of(4), {"loss": 4.0})
  said = capsys.readouterr().err
  assert all(
    f"metrics of step {step} cannot be read" in said for step in (2, 3)
  )
  with contextlib.closing(Checkpoints(str(path), keeping)) as kept:
    assert kept.restore_newest(SHAPES, PLACES)[0] == 4
  assert capsys.readouterr().err == ""
  names = {p.name for p in (tmp_path / "damaged").iterdir()}
  assert names == {"2_metrics", "3_metrics"}


def test_if_nothing_is_whole_that_is_said_and_nothing_moved(folder):
  for step in STEPS:
    shutil.rmtree(folder / str(step) / "state")
  with pytest.raises(DamagedFile, match="no checkpoint of 3 is whole: step 3"):
    newest(folder)
  assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]


def test_a_damaged_step_can_be_saved_anew(folder):
  shutil.rmtree(folder / "3" / "digests")
  with contextlib.closing(
    Checkpoints(str(folder), CheckpointPolicy(keep=9))
  ) as kept:
    assert kept.restore_newest(SHAPES, PLACES)[0] == 2
    kept.save(3, state_of(3))
  assert newest(folder)[0] == 3
  shutil.rmtree(folder / "3" / "digests")
  assert newest(folder)[0] == 2
  aside = pathlib.Path(folder).parent / "damaged"
  assert sorted(p.name for p in aside.iterdir()) == ["3", "3-1"]


def test_a_part_is_verified_by_itself(folder):
  target = {"params": SHAPES["params"]}
  placed = jax.tree.map(
    lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
    target,
    {"params": PLACES["params"]},
  )
  step, part = checkpoint.restore_newest_subtree(str(folder), placed)
  assert step == 3
  np.testing.assert_array_equal(
    part["params"]["kernel"], state_of(3)["params"]["kernel"]
  )
  path = folder / "3" / "digests" / "metadata"
  told = json.loads(path.read_text())
  told["params/kernel"] = told["params/kernel"][:-1] + "x"
  path.write_text(json.dumps(told))
  assert checkpoint.restore_newest_subtree(str(folder), placed)[0] == 2


def test_trees_that_are_written_once_are_verified(tmp_path):
  tree = {"vgg": state_of(1)["params"], "none": None}
  path = tmp_path / "frozen"
  tree_io.save_tree(str(path), tree)
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )
  assert checksum(tree_io.load_tree(str(path), target)) == checksum(tree)
  assert tree_io.verify_tree(str(path), "frozen")[0] is None
  told = path / "digests" / "metadata"
  told.write_text(told.read_text().replace("vgg/bias", "vgg/base"))
  with pytest.raises(
    DamagedFile, match=r"frozen failed its digest at vgg/bias"
  ):
    tree_io.load_tree(str(path), target)
  assert "vgg/bias" in tree_io.verify_tree(str(path), "frozen")[0]


def test_verify_lists_every_step(folder, capsys):
  run = folder.parent
  tree_io.save_tree(str(run / "frozen"), {"x": jnp.arange(3.0)})
  listed = list(checkpoint.verify_checkpoints(str(folder)))
  assert [(step, wrong) for step, wrong, _ in listed] == [
    (step, None) for step in STEPS
  ]
  for step, _, leaves in listed:
    assert leaves == checksums(state_of(step)).leaves
  with pytest.raises(Exception, match="is no run folder"):
    verify.main([str(run)])


HOLDER = """
import sys, time
from ldm_jax.runtime.checkpointing.run_lock import run_lock
with run_lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


def test_what_a_killed_start_left_is_taken_away(tmp_path):
  folder = tmp_path / "frozen"
  tree_io.save_tree(str(folder), {"a": jnp.arange(3.0)})
  (tmp_path / "frozen.orbax-checkpoint-tmp-7").mkdir()
  tree_io.save_tree(str(folder), {"a": jnp.arange(4.0)})
  place = SingleDeviceSharding(jax.devices()[0])
  wanted = {"a": jax.ShapeDtypeStruct((4,), np.float32, sharding=place)}
  found = tree_io.load_tree(str(folder), wanted)
  np.testing.assert_array_equal(found["a"], np.arange(4.0))
  assert [path.name for path in tmp_path.iterdir()] == ["frozen"]


def test_a_folder_has_one_writer(tmp_path):
  run = tmp_path / "run"
  with run_lock(str(run)) as before:
    assert before is None
    (run / "config.json").write_text("{}")
    # An open file of its own, as another process has it.
    message = f"is written by process {os.getpid()} on .*choose another"
    with pytest.raises(RunLocked, match=message), run_lock(str(run)):
      raise AssertionError
  with run_lock(str(run)) as before:
    assert before is None
  with subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE
  ) as other:
    other.stdout.readline()
    with (
      pytest.raises(RunLocked, match=f"process {other.pid} "),
      run_lock(str(run)),
    ):
      raise AssertionError
    other.kill()
  with run_lock(str(run)) as before:  # what a killed process leaves bars nobody
    assert before["pid"] == other.pid
  with pytest.raises(KeyError), run_lock(str(tmp_path / "new")):
    raise KeyError
  assert not (tmp_path / "new").exists()
