"""Encodes a config's training images once, to a folder of posterior moments."""

import concurrent.futures
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import config_json
from ldm_jax.config import Data, Experiment, packages
from ldm_jax.data.bad_images import SkipBadImages
from ldm_jax.data.sources.cached_latents import (
  read_manifest,
  write_captions,
  write_manifest,
)
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.latents import check_encoder, encode_raw
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.pretrained.hub.fetch import local_run
from ldm_jax.run import open_first_stage
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.devices import attention_kernels, processes
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.runtime.monitoring.progress import Progress
from ldm_jax.training.dataloading import bad_image_log
from ldm_jax.training.preparation import array_files
from ldm_jax.training.preparation.progress_log import (
  ProgressLog,
  log_path,
  remove_logs,
)
from ldm_jax.training.preparation.request import PrepareRequest, PrepareResult
from ldm_jax.training.preparation.texts import TextCache, text_cache

logger = logging.getLogger(__name__)

FLUSH_EVERY = 64  # blocks
Item = dict[str, Any]
Encode = Callable[[np.ndarray], np.ndarray]


class Work(NamedTuple):
  """The examples to encode.

  Attributes:
    copies: of every example.
    seed: of crops and mirroring.
    source: the data's, with bad images replaced.
  """

  data: Data
  copies: int
  seed: int
  source: SkipBadImages

  @property
  def count(self) -> int:
    """Examples in all."""
    return len(self.source) * self.copies

  def item(self, number: int) -> Item:
    """An example with its random crop, a function of (seed, number)."""
    copy, index = divmod(number, len(self.source))
    item = dict(self.source[index])
    if self.data.augment is None:
      return item
    rng = np.random.default_rng([self.seed, copy, index])
    return self.data.augment.random(item, rng)


class Encoders(NamedTuple):
  """What is computed of examples: moments, and outputs of text encoders."""

  moments: Encode
  texts: TextCache | None

  def encode(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """Arrays [b ...] by their names."""
    images = np.stack([item["image"] for item in items])
    found = {"moments": self.moments(images)}
    if self.texts is not None:
      found |= self.texts.encode([item["caption"] for item in items])
    return found


def _check_captions(item: Item) -> None:
  """Raises ConfigError for examples without captions."""
  if "caption" not in item:
    raise ConfigError(
      "the config's source has no captions; leave texts out (--texts)"
    )


def cache_latents(
  request: PrepareRequest, experiment: Experiment
) -> PrepareResult:
  """Encodes the examples that `request.out` lacks.

  Raises:
    ConfigError, ImageError, DataError, DamagedFile: see `prepare`.
  """
  data = experiment.data
  with config_errors():
    sharding = MeshShape().build()
    sharding.check_batch(request.batch)
    trust = (*request.trust, *packages(experiment))
    run = open_first_stage(local_run(request.first_stage), trust)
    check_encoder(run.experiment.task)
    params = run.trained(sharding)
    stage = run.experiment.task.autoencoder
    readable = SkipBadImages(data.source, bad_image_log(experiment))
    work = Work(data, request.copies, experiment.seed, readable)
    first = work.item(0)
    stage.latent_shape(*first["image"].shape[:2])
  encode, texts = _encoder(stage, params, sharding, request.dtype), None
  if request.texts:
    with config_errors():
      _check_captions(first)
      texts = text_cache(experiment, sharding, request.dtype, trust)
  arrays = _arrays_of(first, encode, request.batch)
  if texts is not None:
    arrays |= {
      name: rows[0]
      for name, rows in texts.encode([first["caption"]] * request.batch).items()
    }
  manifest = {
    "count": work.count,
    "copies": request.copies,
    "seed": experiment.seed,
    "first_stage": checksum(params),
    "source": config_json.to_json(data.source),
    "augment": config_json.to_json(data.augment),
    "batch": request.batch,
    "has_captions": "caption" in first,
    "arrays": {n: [str(a.dtype), list(a.shape)] for n, a in arrays.items()},
  }
  if texts is not None:
    manifest["texts"] = texts.identity
  manifest = json.loads(json.dumps(manifest))  # as JSON will restore it
  encode_missing(request, work, encode, arrays, manifest, texts)
  return PrepareResult(request.out, "latents", work.count)


def encode_missing(
  request: PrepareRequest,
  work: Work,
  encode: Encode,
  arrays: Mapping[str, np.ndarray],
  manifest: Mapping[str, Any],
  texts: TextCache | None = None,
) -> None:
  """Encodes what `request.out` lacks, and marks it as complete.

  Args:
    arrays: a row of each file, by name.
    manifest: what the folder will hold, as JSON.

  Raises:
    ConfigError: it holds other latents.
  """
  with config_errors():
    is_begun = _begin(request.out, manifest, arrays)
  if not is_begun:
    logger.info(f"{request.out} is complete")
    if processes.is_first():
      remove_logs(request.out)  # of a process killed after the last line
    return
  _encode_all(request, work, Encoders(encode, texts), arrays)
  processes.barrier("all is encoded")
  if processes.is_first():
    classes = list(getattr(work.data.source, "classes", ()))
    _finish(request.out, {**manifest, "classes": classes})


def _encoder(
  stage: Autoencoder, params: Any, sharding: Sharding, dtype: str
) -> Encode:
  """Images [b, H, W, 3] to moments [b, h, w, k]."""

  if jax.process_count() > 1:
    # Each process encodes different images, on a device of its own.
    sharding = MeshShape().build(jax.local_devices()[:1])
    whole = jax.tree.map(processes.gather, params)
    params = jax.device_put(whole, sharding.replicated)
  stage = attention_kernels.with_attention_kernels(stage, sharding)

  @jax.jit
  def moments(params: Any, images: jax.Array) -> jax.Array:
    return encode_raw(stage, params, {"image": images}).moments

  def encode(images: np.ndarray) -> np.ndarray:
    found = moments(params, jax.device_put(images, sharding.batch))
    return np.asarray(found).astype(dtype)

  return encode


def _arrays_of(first: Item, encode: Encode, batch: int) -> dict[str, Any]:
  """An example's arrays with the image's moments in place of the image."""
  others = {name: np.asarray(value) for name, value in first.items()}
  kept = {
    name: array
    for name, array in others.items()
    if name != "image" and array.dtype.kind not in "USO"
  }
  (moments, *_) = encode(np.stack([first["image"]] * batch))
  return {"moments": moments} | kept


def _begin(
  folder: str, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> bool:
  """Creates the files unless they exist; whether anything is left to do.

  Raises:
    ConfigError: the folder holds other latents.
  """
  there = read_manifest(folder)
  if there is not None:
    same = [name for name in manifest if there.get(name) == manifest[name]]
    other = [name for name in manifest if name not in same]
    if other:
      raise ConfigError(
        f"{folder} holds latents with another {other[0]}; choose another "
        "folder (--out)"
      )
  is_new = processes.broadcast(there is None)
  if is_new and processes.is_first():
    array_files.create(folder, arrays, manifest["count"])
    write_manifest(folder, {**manifest, "is_complete": False})
  processes.barrier("files created")
  return not processes.broadcast(bool(there and there.get("is_complete")))


def _encode_all(
  request: PrepareRequest,
  work: Work,
  encoders: Encoders,
  arrays: Mapping[str, np.ndarray],
) -> None:
  """Encodes this process's blocks, from the first that is not on disk."""
  mine, count = jax.process_index(), jax.process_count()
  log = ProgressLog(log_path(request.out, mine, count))
  starts = range(mine * request.batch, work.count, count * request.batch)
  done = log.keep(starts)
  blocks = _read_ahead(work, starts[done:], request.batch, request.threads)
  bar = Progress("encoding", len(starts), "blocks", done, mine == 0)
  with bar, array_files.opened(request.out, arrays, work.count) as files:
    for number, (begin, items) in enumerate(blocks, done + 1):
      # Padded, so that there is one shape to compile.
      padded = items + items[-1:] * (request.batch - len(items))
      encoded = encoders.encode(padded)
      for name, file in files.items():
        rows = encoded.get(name)
        rows = np.stack([i[name] for i in items]) if rows is None else rows
        file.write(begin, rows[: len(items)])
      log.blocks.append([begin, [item.get("caption") for item in items]])
      if number % FLUSH_EVERY == 0 or number == len(starts):
        for file in files.values():
          file.flush()
        log.write()
      bar.update()


def _read_ahead(
  work: Work, starts: range, batch: int, threads: int
) -> Iterator[tuple[int, list[Item]]]:
  """Blocks of examples, the next one read while one is encoded."""
  numbers = lambda begin: range(begin, min(begin + batch, work.count))
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    submit = lambda begin: [pool.submit(work.item, n) for n in numbers(begin)]
    waiting: list[tuple[int, list]] = []
    for begin in starts:
      waiting.append((begin, submit(begin)))
      if len(waiting) > 1:
        first, block = waiting.pop(0)
        yield first, [future.result() for future in block]
    for first, block in waiting:
      yield first, [future.result() for future in block]


def _finish(folder: str, manifest: Mapping[str, Any]) -> None:
  """Writes the captions and marks the folder as complete."""
  if manifest["has_captions"]:
    count = jax.process_count()
    logs = [ProgressLog(log_path(folder, n, count)) for n in range(count)]
    blocks = [block for log in logs for block in log.blocks]
    captions = [text for _, texts in sorted(blocks) for text in texts]
    write_captions(folder, captions)
  write_manifest(folder, {**manifest, "is_complete": True})
  remove_logs(folder)
