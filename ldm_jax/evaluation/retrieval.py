"""Behind the search: pictures to embeddings, embeddings to neighbours."""

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from ldm_jax import config
from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.data.batching import Source
from ldm_jax.data.images import read_image
from ldm_jax.data.sources.neighbours import ROWS, Neighbours
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.metrics.nearest_neighbours import nearest
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.networks import load
from ldm_jax.run import Run, open_first_stage
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.weights.mmap_files import replace_file

Encoder = Callable[[UInt8[np.ndarray, "b h w 3"]], Float[np.ndarray, "b d"]]


def retrieve(flags: argparse.Namespace) -> int:
  """Searches, and writes what it finds; returns the exit code."""
  with usage_errors():
    if (flags.config is None) == (flags.image is None):
      raise ConfigError("give --config to search for examples, or --image")
    encode, size = encoder_of(flags.encoder)
    if flags.image is not None:
      return _ask(flags, encode, size)
    data = config.load(flags.config).data
    parts = {"train": data.source, "validation": data.validation}
    parts = {name: _bare(source) for name, source in parts.items()}
  with usage_errors():
    found = {
      name: _embed(encode, size, source, flags.batch)
      for name, source in parts.items()
    }
    rows = found["train"]
    itself = np.arange(len(rows))
    near = {
      name: nearest(each, rows, flags.k, itself if name == "train" else None)
      for name, each in found.items()
    }
  os.makedirs(flags.out, exist_ok=True)
  for name, array in {ROWS: rows, **_files(near)}.items():
    path = os.path.join(flags.out, name)
    with replace_file(path) as file:
      np.save(file, array)
    print(path)
  return 0


def _files(near: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {f"{name}.npy": array for name, array in near.items()}


def _ask(flags: argparse.Namespace, encode: Encoder, size: int | None) -> int:
  """Writes the rows nearest to one picture."""
  if flags.database is None:
    raise ConfigError("--image needs --database, what an earlier search wrote")
  path = os.path.join(flags.database, ROWS)
  try:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError) as error:
    raise ConfigError(f"--database: no embeddings in {path}: {error}") from None
  image = _fitted(read_image(flags.image), size)
  (places,) = nearest(encode(image[None]), rows, flags.k)
  with replace_file(flags.out) as file:
    np.save(file, np.asarray(rows[places], np.float32))
  print(flags.out)
  return 0


def _bare(source: Any) -> Source:
  return source.source if isinstance(source, Neighbours) else source


def encoder_of(folder: str) -> tuple[Encoder, int | None]:
  """What embeds pictures, and the side it needs (None: any).

  Raises:
    ConfigError: the folder is neither an image tower nor a run of stage one.
    WeightsError: its weights are not what they should be.
  """
  if Run.exists(folder):
    return _first_stage(folder), None
  tower, variables = load(open_network(folder))
  if not isinstance(tower, ClipVision):
    raise ConfigError(
      f"--encoder {folder!r} is a {type(tower).__name__}; needed is CLIP's "
      "image tower (CLIPVisionModelWithProjection or CLIPModel) or a run of "
      "stage one"
    )
  apply = jax.jit(lambda images: tower.apply(variables, to_float(images)))
  return lambda images: np.asarray(apply(jnp.asarray(images))), tower.size


def _first_stage(folder: str) -> Encoder:
  """A run's latents, flat and of length 1."""
  run = open_first_stage(folder)
  params = run.trained(MeshShape().build())
  model = run.experiment.task.autoencoder

  @jax.jit
  def embed(images: jax.Array) -> jax.Array:
    seen = model.apply(params, to_float(images), method="encode").mode()
    rows = seen.reshape(len(images), -1)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)

  return lambda images: np.asarray(embed(jnp.asarray(images)))


def _embed(
  encode: Encoder, size: int | None, source: Source, batch: int
) -> Float[np.ndarray, "n d"]:
  """The embeddings of a whole source, in its order."""
  pictures = (_fitted(source[i]["image"], size) for i in range(len(source)))
  bar = tqdm(total=len(source), unit="image")
  found = []
  for block in _blocks(pictures, batch):
    count = len(block)
    # One shape, one compilation.
    block = np.concatenate([block, np.repeat(block[-1:], batch - count, 0)])
    found.append(encode(block)[:count])
    bar.update(count)
  bar.close()
  return np.concatenate(found)


def _fitted(image: np.ndarray, size: int | None) -> np.ndarray:
  """The middle square, as an encoder needs it."""
  if size is None:
    return image
  return Augment(size).center({"image": image})["image"]


def _blocks(rows: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
  rows = iter(rows)
  while block := list(itertools.islice(rows, size)):
    yield np.stack(block)
