"""The results of a generation, and the files written from them."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import replace_file
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
    first, paths = next_number(folder), []
    for i, (image, metadata) in enumerate(
      zip(self.images, self.metadata, strict=True)
    ):
      paths.append(os.path.join(folder, f"{first + i:05d}.png"))
      image_files.write_png(paths[-1], np.asarray(image), png_text(metadata))
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

  Nothing is overwritten. Interrupted, the finished ones stay, and the grid
  shows them. Process 0 writes.
  """
  first = next_number(folder)
  images: list[np.ndarray] = []
  prompts: list[str] = []
  is_writer = jax.process_index() == 0
  try:
    for batch in batches:
      prompts += batch.prompts
      for image, metadata in zip(batch.arrays, batch.metadata, strict=True):
        path = os.path.join(folder, f"{first + len(images):05d}.png")
        images.append(image)
        if is_writer:
          text = png_text(metadata) if has_metadata else None
          image_files.write_png(path, image, text)
          written(path)
  finally:
    if images and is_writer:
      sheet = image_files.image_grid(np.stack(images), prompts[: len(images)])
      name = f"grid_{first:05d}.png" if first else "grid.png"
      image_files.write_png(os.path.join(folder, name), sheet)
      written(os.path.join(folder, name))


def write_latents(
  batches: Iterable[GenerationBatch],
  path: str,
  *,
  written: Written = lambda path: None,
) -> None:
  """All latents as one .npy; interrupted, those that are finished."""
  finished: list[np.ndarray] = []
  try:
    finished.extend(batch.arrays for batch in batches)
  finally:
    if finished and jax.process_index() == 0:
      with replace_file(path) as file:
        np.save(file, np.concatenate(finished))
      written(path)


def next_number(folder: str | os.PathLike) -> int:
  """One more than the largest number of a PNG in `folder`."""
  stems = (os.path.splitext(name)[0] for name in os.listdir(folder))
  return max((int(stem) for stem in stems if stem.isdigit()), default=-1) + 1
