"""Nearest neighbours of images by embeddings, the conditioning of RDM.

Blattmann et al. 2022, "Semi-Parametric Neural Image Synthesis".
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax import config
from ldm_jax.config import Experiment
from ldm_jax.data.batching import Source
from ldm_jax.data.images import read_image
from ldm_jax.data.sources.neighbours import ROWS, Neighbours
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError, ImageError, config_errors
from ldm_jax.evaluation.metrics.nearest_neighbours import nearest
from ldm_jax.fields.arguments import check_request, checked
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.numpy_files import read_npy
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.hub.fetch import local_run
from ldm_jax.pretrained.networks import load
from ldm_jax.run import Run, open_first_stage
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.folder_lock import folder_lock, output_lock
from ldm_jax.runtime.monitoring.progress import Progress

Encoder = Callable[[UInt8[np.ndarray, "b h w 3"]], Float[np.ndarray, "b d"]]


@dataclasses.dataclass(frozen=True)
class RetrievalRequest:
  """A search for the neighbours of a config's examples, or of one image.

  Attributes:
    encoder: folder of CLIP's image encoder (transformers), or a run of an
      autoencoder, whose latents are the embedding.
    out: with `config` a folder for the embeddings and neighbours; with `image`
      an .npy file for the embeddings of its neighbours.
    config: an experiment, or its file or name. Embeds its training source, and
      finds the neighbours of its training and validation examples there.
    image: an image file to find the neighbours of.
    database: with `image`: a folder that an earlier search wrote.
    k: number of neighbours, 1 or more.
    batch: images that are embedded at a time, 1 or more.
    trust: packages whose classes the encoder's run may name; see `Run.open`.
  """

  encoder: str
  out: str
  config: str | Experiment | None = None
  image: str | None = None
  database: str | None = None
  k: int = 4
  batch: int = 64
  trust: tuple[str, ...] = ()

  def __post_init__(self):
    check_request(self)
    if (self.config is None) == (self.image is None):
      raise ConfigError(
        "give --config to search for its examples, or --image for one image"
      )
    if self.k < 1 or self.batch < 1:
      raise ConfigError(
        f"k is {self.k} and batch {self.batch}; both must be 1 or more"
      )


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
  """The files written.

  Attributes:
    files: with a config database.npy (embeddings [n d], float32), train.npy
      and validation.npy (indices of neighbours [m k]); with an image `out`
      (embeddings [k d]).
  """

  files: tuple[str, ...]


@checked
def retrieve(request: RetrievalRequest) -> RetrievalResult:
  """Embeds images, finds their nearest neighbours, and writes both.

  Raises:
    ConfigError: the request cannot be fulfilled.
    ImageError: an image of the data cannot be read.
    OutputLocked: another process writes to `request.out`.
    WeightsError: the encoder's weights cannot be used.
  """
  lock = folder_lock if request.image is None else output_lock
  with lock(request.out):
    return _retrieve(request)


def _retrieve(request: RetrievalRequest) -> RetrievalResult:
  with config_errors():
    encode, size = encoder_of(request.encoder, request.trust)
    if request.image is not None:
      return RetrievalResult((_search_image(request, encode, size),))
    data = config.resolve(request.config).data
    sources = {"train": data.source, "validation": data.validation}
    embeddings = {
      name: _embed(encode, size, _images_of(source), request.batch)
      for name, source in sources.items()
    }
    rows = embeddings["train"]
    itself = np.arange(len(rows))
    indices = {
      f"{name}.npy": nearest(
        each, rows, request.k, itself if name == "train" else None
      )
      for name, each in embeddings.items()
    }
  return RetrievalResult(_write(request.out, {ROWS: rows, **indices}))


def _write(folder: str, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
  os.makedirs(folder, exist_ok=True)
  paths = []
  for name, array in arrays.items():
    paths.append(os.path.join(folder, name))
    with replace_file(paths[-1]) as file:
      np.save(file, array)
  return tuple(paths)


def _search_image(
  request: RetrievalRequest, encode: Encoder, size: int | None
) -> str:
  """Writes the embeddings nearest to that of one image; returns the path."""
  if request.database is None:
    raise ConfigError(
      "image needs a database that an earlier search wrote (--database)"
    )
  path = os.path.join(request.database, ROWS)
  rows = read_npy(path, ConfigError, is_mapped=True)
  if rows.ndim != 2:
    raise ConfigError(f"{path} is of shape {rows.shape}; expected rows")
  try:
    image = _fitted(read_image(request.image), size)
  except ImageError as error:
    raise ConfigError(str(error)) from error
  (indices,) = nearest(encode(image[None]), rows, request.k)
  with replace_file(request.out) as file:
    np.save(file, np.asarray(rows[indices], np.float32))
  return request.out


def _images_of(source: Any) -> Source:
  """A source without its neighbours, which may not be written yet."""
  return source.source if isinstance(source, Neighbours) else source


def encoder_of(
  folder: str, trust: Collection[str] = ()
) -> tuple[Encoder, int | None]:
  """A function from images to embeddings, and the side it needs (None: any).

  Raises:
    ConfigError: the folder is neither CLIP's image encoder nor a run of an
      autoencoder.
    WeightsError: its weights cannot be used.
  """
  if Run.exists(folder):
    return _first_stage_encoder(folder, trust), None
  network, variables = load(open_network(folder))
  if not isinstance(network, ClipVision):
    raise ConfigError(
      f"encoder {folder!r} is a {type(network).__name__}; expected CLIP's "
      "image encoder (CLIPVisionModelWithProjection or CLIPModel) or a run of "
      "an autoencoder (--encoder)"
    )
  apply = jax.jit(lambda images: network.apply(variables, to_float(images)))
  return lambda images: np.asarray(apply(jnp.asarray(images))), network.size


def _first_stage_encoder(folder: str, trust: Collection[str]) -> Encoder:
  """The latents of a run's autoencoder, flattened and of unit length."""
  run = open_first_stage(local_run(folder), trust)
  params = run.trained(MeshShape().build())
  model = run.experiment.task.autoencoder

  @jax.jit
  def embed(images: jax.Array) -> jax.Array:
    latents = model.apply(params, to_float(images), method="encode").mode()
    rows = latents.reshape(len(images), -1)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)

  return lambda images: np.asarray(embed(jnp.asarray(images)))


def _embed(
  encode: Encoder, size: int | None, source: Source, batch: int
) -> Float[np.ndarray, "n d"]:
  """The embeddings of a whole source, in its order."""
  images = (_fitted(source[i]["image"], size) for i in range(len(source)))
  found = []
  with Progress("embedding", len(source), "images") as bar:
    for block in _blocks(images, batch):
      count = len(block)
      # Padded to one shape, so that it compiles once.
      block = np.concatenate([block, np.repeat(block[-1:], batch - count, 0)])
      found.append(encode(block)[:count])
      bar.update(count)
  return np.concatenate(found)


def _fitted(image: np.ndarray, size: int | None) -> np.ndarray:
  """The central square at the size of the encoder."""
  if size is None:
    return image
  return Augment(size).center({"image": image})["image"]


def _blocks(rows: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
  rows = iter(rows)
  while block := list(itertools.islice(rows, size)):
    yield np.stack(block)
