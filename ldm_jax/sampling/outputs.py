"""The results of a generation, and the files written from them."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import write_under_free_name
from ldm_jax.runtime import image_files
from ldm_jax.sampling.metadata import png_text
from ldm_jax.sampling.request import GenerationRequest

Written = Callable[[str], None]  # is called with the path of a finished file


@dataclasses.dataclass(frozen=True)
class GenerationBatch:
  """Images that were finished together.

  Attributes:
    arrays: uint8 [b h w 3], or latents [b h w c].
    prompts: one per image, or none.
    metadata: one per image; the fields of its request, see `read_metadata`.
  """

  arrays: np.ndarray
  prompts: Sequence[str]
  metadata: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class GenerationResult:
  """All images of a request.

  Attributes:
    images: PIL images; uint8 [n h w 3] or latents [n h w c] if the request's
      output is "numpy" or "latents".
    metadata: one per image; the fields of its request.
    request: the request that was run.
  """

  images: list[Image.Image] | np.ndarray
  metadata: list[Mapping[str, Any]]
  request: GenerationRequest

  def save(self, folder: str | os.PathLike) -> list[str]:
    """Writes numbered PNGs with their metadata; returns their paths.

    Raises:
      ConfigError: the result holds latents.
    """
    if self.request.output == "latents":
      raise ConfigError("latents are not images; write them with numpy.save")
    os.makedirs(folder, exist_ok=True)
    free, paths = _free_names(folder), []
    for image, metadata in zip(self.images, self.metadata, strict=True):
      pixels, text = np.asarray(image), png_text(metadata)
      paths.append(image_files.write_new_png(free, pixels, text))
    return paths


def gather(
  request: GenerationRequest, batches: Iterable[GenerationBatch]
) -> GenerationResult:
  """All batches as one result."""
  found = list(batches)
  arrays = np.concatenate([batch.arrays for batch in found])
  images = arrays
  if request.output == "pil":
    images = [Image.fromarray(array) for array in arrays]
  metadata = [each for batch in found for each in batch.metadata]
  return GenerationResult(images, metadata, request)


def write_images(
  batches: Iterable[GenerationBatch],
  folder: str,
  *,
  has_metadata: bool = True,
  written: Written = lambda path: None,
) -> None:
  """Numbered PNGs, each as soon as it is finished, and a grid of them.

  Nothing is overwritten, also not what other programs write at the same time;
  their numbers are left out. Interrupted, the finished ones stay, and the grid
  shows them. Process 0 writes.
  """
  free, paths = _free_names(folder), []
  images: list[np.ndarray] = []
  prompts: list[str] = []
  is_writer = jax.process_index() == 0
  try:
    for batch in batches:
      prompts += batch.prompts
      for image, metadata in zip(batch.arrays, batch.metadata, strict=True):
        images.append(image)
        if is_writer:
          text = png_text(metadata) if has_metadata else None
          paths.append(image_files.write_new_png(free, image, text))
          written(paths[-1])
  finally:
    if paths and is_writer:
      images = images[: len(paths)]
      sheet = image_files.image_grid(np.stack(images), prompts[: len(images)])
      name = os.path.basename(paths[0]).removesuffix(".png")
      stem = f"grid_{name}" if int(name) else "grid"
      names = _numbered(os.path.join(folder, stem), ".png")
      written(image_files.write_new_png(names, sheet))


def write_latents(
  batches: Iterable[GenerationBatch],
  path: str,
  *,
  written: Written = lambda path: None,
) -> None:
  """All latents as one .npy; interrupted, those that are finished.

  Nothing is overwritten: another number is added to the name if need be.
  """
  finished: list[np.ndarray] = []
  try:
    finished.extend(batch.arrays for batch in batches)
  finally:
    if finished and jax.process_index() == 0:
      names = _numbered(path.removesuffix(".npy"), ".npy")
      save = lambda file: np.save(file, np.concatenate(finished))
      written(write_under_free_name(names, save))


def next_number(folder: str | os.PathLike) -> int:
  """One more than the largest number of a PNG in `folder`."""
  found = (re.fullmatch(r"([0-9]+)\.\w+", n) for n in os.listdir(folder))
  return max((int(match[1]) for match in found if match), default=-1) + 1


def _free_names(folder: str | os.PathLike) -> Iterator[str]:
  """Paths of numbered PNGs, from the first number that is free."""
  for number in itertools.count(next_number(folder)):
    yield os.path.join(folder, f"{number:05d}.png")


def _numbered(stem: str, suffix: str) -> Iterator[str]:
  """A name, then the same with numbers from 1 on."""
  yield f"{stem}{suffix}"
  for number in itertools.count(1):
    yield f"{stem}_{number}{suffix}"
