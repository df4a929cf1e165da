"""Latents on the disk: written by one process, whole after any kill."""

import errno
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ldm_jax.data.sources.write_records import write_record
from ldm_jax.errors import DamagedFile, SaveFailed
from ldm_jax.training.preparation import array_files
from ldm_jax.training.preparation.progress_log import ProgressLog

ROWS = {
  "moments": np.zeros((4, 4, 2), np.float16),
  "label": np.zeros((), np.int32),
  "mask": np.zeros((3,), bool),
}


def test_files_are_those_of_a_memory_map(tmp_path):
  array_files.create(str(tmp_path), ROWS, 10)
  rng = np.random.default_rng(0)
  values = {
    name: rng.integers(0, 2, (10, *row.shape)).astype(row.dtype)
    for name, row in ROWS.items()
  }
  with array_files.opened(str(tmp_path), ROWS, 10) as files:
    for name, file in files.items():
      file.write(7, values[name][7:])
      file.write(0, values[name][:7])
      file.flush()
  for name, value in values.items():
    mapped = np.lib.format.open_memmap(
      tmp_path / "expected", "w+", value.dtype, value.shape
    )
    mapped[:] = value
    mapped.flush()
    expected = (tmp_path / "expected").read_bytes()
    assert (tmp_path / f"{name}.npy").read_bytes() == expected


def test_other_files_are_not_written_to(tmp_path):
  array_files.create(str(tmp_path), ROWS, 10)
  for count, cut in ((11, None), (10, 100)):
    if cut:
      os.truncate(tmp_path / "moments.npy", cut)
    with (
      pytest.raises(DamagedFile, match="is not what was begun there"),
      array_files.opened(str(tmp_path), ROWS, count),
    ):
      raise AssertionError


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
  with monkeypatch.context() as full:
    full.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SaveFailed, match=r"needs 0.71.* has 0.001 GB free"):
      array_files.create(str(tmp_path), ROWS, 10**7)

  def refuse(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "posix_fallocate", refuse)
  with pytest.raises(SaveFailed, match="free some space"):
    array_files.create(str(tmp_path), ROWS, 10)
  assert not list(tmp_path.iterdir())


def test_a_record_that_does_not_fit_is_one_line(tmp_path):
  """The size of files is limited, in a process of its own, as by a quota."""
  code = (
    "import os, sys\n"
    "from ldm_jax.data.sources.write_records import write_record\n"
    "from ldm_jax.errors import SaveFailed\n"
    "try: write_record(sys.argv[1], [{'jpg': os.urandom(50_000)}] * 50)\n"
    "except SaveFailed as error: print(error)\n"
  )
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
  path = tmp_path / "x.array_record"
  done = subprocess.run(
    [sys.executable, "-c", code, path],
    capture_output=True,
    text=True,
    preexec_fn=limit,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  assert (
    "x.array_record is not written: write() failed: File too large; its"
    in (done.stdout)
  )
  assert not list(tmp_path.iterdir())
  write_record(str(path), [{"jpg": b"x"}])
  assert path.stat().st_size > 0


def test_a_progress_log_keeps_the_blocks_that_fit(tmp_path):
  path = tmp_path / "log"
  log = ProgressLog(str(path))
  assert log.keep(range(0, 40, 8)) == 0
  log.blocks += [[0, ["a"]], [8, ["b"]], [16, ["c"]]]
  log.write()
  whole = path.read_bytes()
  assert ProgressLog(str(path)).blocks == log.blocks
  for text, kept in (
    (whole + b"[24, [", 3),  # half a line
    (whole + b"5\n", 3),
    (whole + b"\xff\n[24, []]\n", 3),
    (b'[0, ["a"]]\n[0, ["a"]]\n[8, ["b"]]\n', 1),  # of two writers
    (b'[8, ["b"]]\n', 0),
    (b"", 0),
  ):
    path.write_bytes(text)
    log = ProgressLog(str(path))
    assert log.keep(range(0, 40, 8)) == kept
    assert ProgressLog(str(path)).blocks == log.blocks


RACE = """
import os, random, signal, sys, time, types
import jax, numpy as np
from ldm_jax.files.file_lock import OutputLocked
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.training.preparation import latents
from ldm_jax.training.preparation.request import PrepareRequest

latents.FLUSH_EVERY = 2
COUNT = 300

class Source:
  def __len__(self): return COUNT
  def __getitem__(self, n):
    return {"image": np.full((8, 8, 3), n % 251, np.uint8),
            "label": np.int32(n), "caption": f"image {n}"}

data = types.SimpleNamespace(augment=None, source=Source())
work = latents.Work(data, 1, 0, data.source)
encode = lambda images: images.astype(np.float16)
arrays = {"moments": np.zeros((8, 8, 3), np.float16), "label": np.int32(0)}
arrays = {name: np.asarray(array) for name, array in arrays.items()}
manifest = {"count": COUNT, "has_captions": True, "arrays": sorted(arrays)}

def prepare(out):
  child = os.fork()
  if child: return child
  try:
    with folder_lock(out):
      request = PrepareRequest("none", out, batch=4, threads=1)
      latents.encode_missing(request, work, encode, arrays, manifest)
    os._exit(0)
  except OutputLocked: os._exit(2)
  except BaseException as error: print(repr(error), flush=True); os._exit(70)

def end(child): return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

folder, rounds = sys.argv[1], int(sys.argv[2])
codes, killed = set(), 0
for n in range(rounds):
  out = os.path.join(folder, str(n))
  both = [prepare(out), prepare(out)]
  if n % 2:
    time.sleep(random.uniform(0.0, 0.15))
    for child in both: os.kill(child, signal.SIGKILL)
  found = [end(child) for child in both]
  codes |= set(found)
  killed += -9 in found
  assert end(prepare(out)) == 0
print(sorted(codes), killed)
"""


@pytest.mark.parametrize(
  "rounds", [4, pytest.param(100, marks=pytest.mark.slow)]
)
def test_two_that_prepare_one_folder_mix_nothing(tmp_path, rounds):
  """Started together, half of them killed, then resumed: all rows are right."""
  done = subprocess.run(
    [sys.executable, "-c", RACE, tmp_path, str(rounds)],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr + done.stdout
  codes, killed = done.stdout.rsplit("]", 1)
  assert "70" not in codes, done.stdout
  assert int(killed) >= rounds // 50  # so many were killed at work
  for n in range(rounds):
    rows = np.load(tmp_path / str(n) / "moments.npy")
    labels = np.load(tmp_path / str(n) / "label.npy")
    assert (rows[:, 0, 0, 0] == np.arange(300) % 251).all()
    assert (rows == rows[:, :1, :1, :1]).all()
    assert (labels == np.arange(300)).all()
    text = (tmp_path / str(n) / "captions.npy").read_bytes()
    assert text.endswith("".join(f"image {i}" for i in range(300)).encode())
    assert sorted(os.listdir(tmp_path / str(n))) == [
      *("captions.npy", "captions_ends.npy", "label.npy", "manifest.json"),
      "moments.npy",
    ]
