"""Speed of the input: image files, packed images, cached latents.

  python benchmarks/input.py [--threads 2]

Prints one line of JSON. JPEGs are 640 x 480 of quality 90, made from the
photographs that ship with scikit-image (pip install -e ".[test]"), cut to
256 x 256; latents are [32, 32, 4] with their variances, half precision. Results
are in benchmarks/input.md.
"""

import argparse
import io
import json
import multiprocessing
import os
import pathlib
import tempfile
import time

import numpy as np
import skimage
from PIL import Image

from ldm_jax.data import batching
from ldm_jax.data.images import decode_image
from ldm_jax.data.sources.cached_latents import CachedLatents, write_manifest
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.shards import Shards, write_record
from ldm_jax.data.transforms.augment import Augment

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
IMAGES, LATENTS, BATCH = 512, 20_000, 256
AUGMENT = Augment(256, scale=(0.8, 1.0))


def jpegs():
  """Different files of a camera's typical size."""
  root, rng = (
    pathlib.Path(skimage.__file__).parent / "data",
    np.random.default_rng(0),
  )
  whole = [Image.open(root / name).convert("RGB") for name in NAMES]
  for i in range(IMAGES):
    photo = whole[i % len(whole)]
    part = 0.7 + 0.3 * rng.random()
    width, height = (int(part * side) for side in photo.size)
    left, top = rng.integers(
      0, [photo.width - width + 1, photo.height - height + 1]
    )
    cut = photo.resize((640, 480), box=(left, top, left + width, top + height))
    file = io.BytesIO()
    cut.save(file, "JPEG", quality=90)
    yield file.getvalue()


def speed(stream, batches, rows):
  """Rows per second, after two batches."""
  next(stream), next(stream)
  began = time.perf_counter()
  for _ in range(batches):
    next(stream)
  return batches * rows / (time.perf_counter() - began)


def one_core(files):
  """Images decoded and cropped per second by one thread alone."""
  rng = np.random.default_rng(0)
  make = lambda data: AUGMENT.random(
    {"image": decode_image(io.BytesIO(data), "an image")}, rng
  )
  make(files[0])
  began = time.perf_counter()
  for data in files:
    make(data)
  return len(files) / (time.perf_counter() - began)


def all_cores(files, count):
  """The same by several processes at once, which share caches and memory."""
  with multiprocessing.get_context("fork").Pool(count) as pool:
    return sum(pool.map(one_core, [files] * count))


def cache(folder):
  """A cache of random latents."""
  shape = (LATENTS, 32, 32, 8)
  rng = np.random.default_rng(0)
  block = rng.standard_normal(shape[1:], np.float32).astype(np.float16)
  array = np.lib.format.open_memmap(
    f"{folder}/moments.npy", "w+", "float16", shape
  )
  array[:] = block
  array.flush()
  np.save(f"{folder}/label.npy", np.arange(LATENTS, dtype=np.int32) % 1000)
  write_manifest(
    folder,
    {
      "count": LATENTS,
      "has_captions": False,
      "is_complete": True,
      "arrays": {"moments": ["float16", [32, 32, 8]], "label": ["int32", []]},
    },
  )
  return CachedLatents(folder)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--threads", type=int, default=2)
  options = flags.parse_args()
  files = list(jpegs())
  found = {"cores": os.cpu_count(), "threads": options.threads}
  found["jpeg_kilobytes"] = round(sum(map(len, files)) / len(files) / 1e3, 1)
  cores = min(options.threads, os.cpu_count())
  found["decode_and_cut_one_core"] = one_core(files)
  found["decode_and_cut_all_cores"] = all_cores(files, cores)
  stream = lambda source, augment: batching.batches(
    source, batch=BATCH, seed=0, augment=augment, threads=options.threads
  )
  with tempfile.TemporaryDirectory() as root:
    os.mkdir(f"{root}/folder")
    for i, data in enumerate(files):
      pathlib.Path(f"{root}/folder/{i}.jpg").write_bytes(data)
    found["folder"] = speed(
      stream(Folder(f"{root}/folder"), AUGMENT), 10, BATCH
    )
    write_record(f"{root}/a.array_record", [{"jpg": data} for data in files])
    packed = Shards(f"{root}/a.array_record")
    found["array_record"] = speed(stream(packed, AUGMENT), 10, BATCH)
    os.mkdir(f"{root}/latents")
    latents = cache(f"{root}/latents")
    found["latents"] = speed(stream(latents, None), 200, BATCH)
  found["folder_fraction"] = found["folder"] / found["decode_and_cut_all_cores"]
  print(json.dumps({n: round(value, 3) for n, value in found.items()}))


if __name__ == "__main__":
  main()
