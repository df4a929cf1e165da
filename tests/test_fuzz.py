"""Two thousand damaged files are read or refused with an error of this package.

They are read in a process whose peak memory is measured.
"""

import io
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from full import repeated
from PIL import Image
from torch_files import Name, Reduced, tensor, write

from ldm_jax import config, config_json
from ldm_jax.data.images import read_image
from ldm_jax.errors import ConfigError, ImageError, WeightsError
from ldm_jax.run import Run
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.safetensors_files import write_safetensors

ROOT = pathlib.Path(__file__).parent.parent
ERRORS = (WeightsError, ImageError, ConfigError)
COUNT = repeated(2000)


def seeds(root):
  """(file, reader) of valid files of every type, and of malicious ones."""
  rng = np.random.default_rng(0)
  arrays = {
    "a.weight": rng.standard_normal((7, 5)).astype(np.float32),
    "b.bias": rng.integers(0, 9, 11),
    "c": rng.standard_normal(3).astype(np.float16),
  }
  found = []
  code = Reduced(Name("posix", "system"), (f"touch {root / 'sentinel'}",))
  tensors = {name: tensor(array) for name, array in arrays.items()}
  for layout in ("zip", "legacy"):
    for name, value in (("good", tensors), ("evil", {**tensors, "x": code})):
      path = root / f"{name}_{layout}.ckpt"
      write(layout, path, value)
      found.append((path, read_tensors))
  path = root / "good.safetensors"
  write_safetensors(str(path), arrays)
  found.append((path, read_tensors))
  from flax.serialization import msgpack_serialize

  path = root / "good.msgpack"
  path.write_bytes(msgpack_serialize({"a": {"kernel": arrays["a.weight"]}}))
  found.append((path, read_tensors))
  image = Image.fromarray(rng.integers(0, 256, (33, 41, 3), np.uint8))
  for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
    file = io.BytesIO()
    image.save(file, form)
    path = root / f"good.{form.lower()}"
    path.write_bytes(file.getvalue())
    found.append((path, read_image))
  experiment = config.load(str(ROOT / "configs" / "glyphs_text.py"))
  run_config = {
    "experiment": config_json.to_json(experiment),
    "batch": {"image": [[8, 32, 32, 3], "uint8"]},
  }
  path = root / "run" / "config.json"
  path.parent.mkdir()
  path.write_text(json.dumps(run_config))
  found.append((path, lambda path: Run.open(os.path.dirname(path))))
  return found


def damaged(raw, rng):
  """Flips bits, or changes, cuts, repeats, moves or overwrites bytes."""
  raw = bytearray(raw)
  for _ in range(rng.choice([1, 1, 1, 3, 10])):
    place = rng.randrange(max(1, len(raw)))
    kind = rng.randrange(7)
    if kind == 0 and raw:
      raw[place] ^= 1 << rng.randrange(8)
    elif kind == 1 and raw:
      raw[place] = rng.randrange(256)
    elif kind == 2:
      del raw[place:]
    elif kind == 3:
      del raw[place : place + rng.randrange(1, 9)]
    elif kind == 4:
      raw[place:place] = raw[place : place + rng.randrange(1, 200)]
    elif kind == 5:
      raw[place : place + 8] = b"\xff" * rng.choice([1, 2, 4, 8])
    else:
      other = rng.randrange(max(1, len(raw)))
      raw[place : place + 4] = raw[other : other + 4]
  return bytes(raw)


def peak():
  """Peak memory of this process in GiB.

  Not by getrusage: Linux keeps its peak over exec, so it may be the parent's.
  """
  status = pathlib.Path("/proc/self/status")
  if not status.exists():
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
  high_water = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
  return int(high_water[1]) / 2**20


def fuzz(root):
  """Numbers of files refused and read, and all other outcomes."""
  rng, files = random.Random(0), seeds(root)
  refused, read, other = 0, 0, []
  for number in range(COUNT):
    path, reader = files[number % len(files)]
    original = path.read_bytes()
    path.write_bytes(damaged(original, rng))
    try:
      found = reader(str(path))
      if isinstance(found, dict):
        _ = {name: found[name] for name in found}
      read += 1
    except ERRORS as error:
      refused += 1
      if "\n" in str(error):
        other.append((path.name, number, "more than a line"))
    except Exception as error:
      other.append(
        (path.name, number, f"{type(error).__name__}: {error}"[:200])
      )
    path.write_bytes(original)
  return {
    "refused": refused,
    "read": read,
    "other": other,
    "peak_gib": peak(),
  }


@pytest.mark.slow
def test_damaged_files_are_refused_or_read(tmp_path):
  done = subprocess.run(
    [sys.executable, __file__, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=500,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  result = json.loads(done.stdout.splitlines()[-1])
  print(result)
  assert result["other"] == []
  assert result["refused"] + result["read"] == COUNT
  assert result["refused"] > COUNT / 3
  assert result["peak_gib"] < 2
  assert not (tmp_path / "sentinel").exists()


if __name__ == "__main__":
  print(json.dumps(fuzz(pathlib.Path(sys.argv[1]))))
