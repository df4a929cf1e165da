"""A preparation killed at any change of a file resumes to the same folder."""

import os
import pathlib
import subprocess
import sys

import pytest

# Forks: a process is killed as it is about to make its n-th change of a file,
# for each n, and a second one resumes.
EVERY_KILL = """
import dataclasses, os, pathlib, sys, types
import jax, numpy as np
from ldm_jax import config
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.training.preparation import images, latents
from ldm_jax.training.preparation.request import PrepareRequest

folder = pathlib.Path(sys.argv[2])
KILLED = 9
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link",
           "os.truncate", "open"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def kill_at(number):
  left = number
  def hook(event, arguments):
    nonlocal left
    if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
      return
    if event == "open" and not arguments[2] & WRITES:
      return
    left -= 1
    if not left:
      os._exit(KILLED)
  sys.addaudithook(hook)

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
def test_killed_at_every_change_of_a_file(tmp_path, what, files):
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
