"""A preparation that is killed resumes to the same folder, at any time."""

import os
import pathlib
import subprocess
import sys

import pytest

# Forks: a process is killed as it creates, opens, renames or removes a file, or
# halfway in writing rows or progress, the n-th time; then another resumes.
EVERY_KILL = """
import dataclasses, os, pathlib, sys, types
import jax, numpy as np
from ldm_jax import config
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.training.preparation import (
  array_files, images, latents, progress_log)
from ldm_jax.training.preparation.request import PrepareRequest

folder = pathlib.Path(sys.argv[2])
KILLED = 9
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link",
           "os.truncate", "open"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def kill_at(number):
  left = number
  def is_last():
    nonlocal left
    left -= 1
    return not left

  def hook(event, arguments):
    if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
      return
    if event == "open" and not arguments[2] & WRITES:
      return
    if is_last():
      os._exit(KILLED)
  sys.addaudithook(hook)

  class Cut:  # an unbuffered file
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, data):
      data = memoryview(data).cast("B")
      if is_last():
        self.file.write(data[: len(data) // 2])
        os._exit(KILLED)
      return self.file.write(data)

  files = (array_files, "open_update"), (progress_log, "open_append")
  for module, name in files:
    opened = getattr(module, name)
    setattr(module, name, lambda path, opened=opened: Cut(opened(path)))

def in_a_process(make, out, number=0):
  child = os.fork()
  if child == 0:
    try:
      kill_at(number)
      make(str(out))
      os._exit(0)
    except BaseException as error:
      print(repr(error), flush=True)
      os._exit(70)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

@dataclasses.dataclass(frozen=True)
class Source:
  def __len__(self): return 5
  def __getitem__(self, n):
    return {"image": np.full((4, 4, 3), n + 1, np.uint8),
            "label": np.int32(n), "caption": f"image {n}"}

def encoded(out):
  latents.FLUSH_EVERY = 1
  data = types.SimpleNamespace(augment=None, source=Source())
  work = latents.Work(data, 1, 0, data.source)
  arrays = {"moments": np.zeros((4, 4, 3), np.float16),
            "label": np.zeros((), np.int32)}
  manifest = {"count": 5, "has_captions": True, "arrays": sorted(arrays)}
  with folder_lock(out):
    latents.encode_missing(
      PrepareRequest("none", out, batch=2, threads=1), work,
      lambda images: images.astype(np.float16), arrays, manifest)

def packed(out):
  images.EACH = 2
  with folder_lock(out):
    images.pack_images(
      PrepareRequest("none", out, size=8, threads=1), experiment)

experiment = config.resolve("configs/glyphs_autoencoder.py")
data = dataclasses.replace(experiment.data, source=Source())
experiment = dataclasses.replace(experiment, data=data)
make = {"encoded": encoded, "packed": packed}[sys.argv[1]]
read = lambda out: {p.name: p.read_bytes() for p in out.iterdir()}
assert in_a_process(make, folder / "whole") == 0
whole = read(folder / "whole")
if sys.argv[1] == "encoded":  # of a process that is no longer one of the job
  (folder / "whole" / "done_1_of_2.jsonl").touch()
  assert in_a_process(make, folder / "whole") == 0
  assert read(folder / "whole") == whole
number, found = 0, KILLED
while found == KILLED:
  number += 1
  out = folder / str(number)
  found = in_a_process(make, out, number)
  assert found in (0, KILLED), found
  assert in_a_process(make, out) == 0, number
  again = read(out)
  assert again.keys() == whole.keys(), (number, sorted(again))
  assert again == whole, number
assert len(os.listdir(folder)) == number + 1  # no locks, nothing temporary
print(number)
"""


@pytest.mark.parametrize(
  ("what", "files"),
  [
    (
      "encoded",
      "captions.npy captions_ends.npy label.npy manifest.json moments.npy",
    ),
    (
      "packed",
      "00000-of-00003.array_record 00001-of-00003.array_record "
      "00002-of-00003.array_record manifest.json",
    ),
  ],
  ids=["encoded", "packed"],
)
def test_killed_at_any_time(tmp_path, what, files):
  done = subprocess.run(
    [sys.executable, "-c", EVERY_KILL, what, tmp_path],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert int(done.stdout.split()[-1]) > 20
  assert sorted(os.listdir(tmp_path / "whole")) == files.split()
