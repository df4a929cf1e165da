"""Downscales a config's training images and packs them in array records."""

import concurrent.futures
import functools
import io
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from ldm_jax import config_json
from ldm_jax.config import Data, Experiment
from ldm_jax.data.bad_images import SkipBadImages
from ldm_jax.data.images import shrink, shrink_map
from ldm_jax.data.sources.cached_latents import read_manifest, write_manifest
from ldm_jax.data.sources.shards import RECORD
from ldm_jax.data.sources.write_records import write_record
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.files.file_lock import is_unused
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.monitoring.progress import Progress
from ldm_jax.training.dataloading import bad_image_log
from ldm_jax.training.preparation.request import PrepareRequest, PrepareResult

logger = logging.getLogger(__name__)

EACH = 1000  # examples in a file


def pack_images(
  request: PrepareRequest, experiment: Experiment
) -> PrepareResult:
  """Writes the array records that `request.out` lacks.

  Raises:
    ConfigError, ImageError, DataError: see `prepare`.
  """
  source = experiment.data.source
  with config_errors():
    side = request.size or _side(experiment.data)
    manifest = {
      "kind": "images",
      "count": len(source),
      "each": EACH,
      "size": side,
      "format": request.format,
      "source": config_json.to_json(source),
    }
    manifest = json.loads(json.dumps(manifest))  # as JSON will restore it
    _begin(request.out, manifest)
    readable = SkipBadImages(source, bad_image_log(experiment))
    encode = functools.partial(_files, readable, side, request.format)
    encode(0)  # an example that cannot be packed is refused before any file
  _write_all(request, len(source), encode)
  processes.barrier("examples packed")
  if processes.is_first():
    classes = list(getattr(source, "classes", ()))
    write_manifest(
      request.out, {**manifest, "classes": classes, "is_complete": True}
    )
  return PrepareResult(request.out, "images", len(source))


def _side(data: Data) -> int:
  """The shorter side that a config's crops need."""
  if data.augment is None:
    raise ConfigError("the config has no data.augment; give size (--size)")
  return round(data.augment.size / data.augment.scale[0])


def _begin(folder: str, manifest: Mapping[str, Any]) -> None:
  """Writes what the folder will hold into its manifest.

  Raises:
    ConfigError: it holds something else.
  """
  there = read_manifest(folder)
  if there is None and not is_unused(folder):
    raise ConfigError(
      f"{folder} holds other files; choose another folder (--out)"
    )
  other = [
    n for n, value in manifest.items() if there and there.get(n) != value
  ]
  if other:
    raise ConfigError(
      f"{folder} was prepared with another {other[0]}; choose another "
      "folder (--out)"
    )
  if processes.broadcast(there is None) and processes.is_first():
    write_manifest(folder, {**manifest, "is_complete": False})
  processes.barrier("folder created")


def _write_all(
  request: PrepareRequest,
  count: int,
  encode: Callable[[int], dict[str, bytes]],
) -> None:
  """Writes this process's files, except those that exist."""
  total = -(-count // EACH)
  mine = range(jax.process_index(), total, jax.process_count())
  name = lambda n: f"{n:05d}-of-{total:05d}{RECORD}"
  paths = {n: os.path.join(request.out, name(n)) for n in mine}
  missing = [n for n in mine if not os.path.exists(paths[n])]
  if len(missing) < len(mine):
    logger.info(
      "%d of %d files exist already", len(mine) - len(missing), len(mine)
    )
  done, is_first = len(mine) - len(missing), processes.is_first()
  bar = Progress("packing", len(mine), "files", done, is_first)
  with bar, concurrent.futures.ThreadPoolExecutor(request.threads) as pool:
    for n in missing:
      numbers = range(n * EACH, min((n + 1) * EACH, count))
      write_record(paths[n], list(pool.map(encode, numbers)))
      bar.update()


def _files(source: Any, side: int, form: str, index: int) -> dict[str, bytes]:
  """An example as files of an array record; see data/sources/shards.py.

  Raises:
    ValueError: it has an array that cannot be packed.
  """
  item = dict(source[index])
  files = {form: _encoded(shrink(item.pop("image"), side), form)}
  if "caption" in item:
    files["txt"] = str(item.pop("caption")).encode()
  if "label" in item:
    files["cls"] = str(int(item.pop("label"))).encode()
  if "score" in item:
    files["json"] = json.dumps({"score": float(item.pop("score"))}).encode()
  if "boxes" in item:
    rows = [row for row in item.pop("boxes").tolist() if row[2] >= 0]
    boxes = [{"class": int(row[4]), "box": row[:4]} for row in rows]
    files["boxes.json"] = json.dumps(boxes).encode()
  for key in ("segmap", "mask", "depth"):
    if key in item:
      plane = shrink_map(item.pop(key), side)
      files[f"{key.replace('seg', '')}.png"] = _plane(plane)
  if item:
    raise ValueError(
      f"examples have {', '.join(sorted(item))}, which cannot be packed; leave "
      "it out of the source"
    )
  return files


def _encoded(image: np.ndarray, form: str) -> bytes:
  file = io.BytesIO()
  if form == "png":
    Image.fromarray(image).save(file, "PNG")
  else:
    # 4:4:4: no chroma subsampling.
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
  return file.getvalue()


def _plane(plane: np.ndarray) -> bytes:
  """A PNG: classes unchanged, masks as 0 and 255, depth in 16 bits."""
  if plane.dtype == bool:
    plane = plane.astype(np.uint8) * 255
  elif plane.dtype != np.uint8:
    plane = np.round((plane + 1) / 2 * 65535).astype(np.uint16)
  file = io.BytesIO()
  Image.fromarray(plane).save(file, "PNG")
  return file.getvalue()
