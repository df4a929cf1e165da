"""Sets of images that are read a block at a time."""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm_jax.data.images import resize
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError

Images = UInt8[np.ndarray, "b h w 3"]

GRID = re.compile(r"grid(_\d+)?\.png")  # the overview that sample.py writes
SIDE = 32  # of images whose pixels are compared


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """A sequence of images, uint8 [h w 3], some of the examples of a source.

  Attributes:
    name: for progress bars.
    source: examples with an "image".
    indices: which of them.
    augment: how they are cropped, or None.
    names: file names, where the images are files.
  """

  name: str
  source: Any
  indices: Sequence[int]
  augment: Augment | None = None
  names: Sequence[str] = ()

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
    item = {"image": self.source[self.indices[i]]["image"]}
    return (self.augment.center(item) if self.augment else item)["image"]

  def captions(self) -> list[str]:
    """The captions of all images; empty if one has none."""
    found = []
    for i in self.indices:
      caption = self.source[i].get("caption")
      if caption is None:
        return []
      found.append(caption)
    return found

  def blocks(self, size: int) -> Iterator[Images]:
    """All images in order; a block has at most `size`, of one height and
    width."""
    block: list[np.ndarray] = []
    for i in range(len(self)):
      image = self[i]
      if block and (len(block) == size or image.shape != block[0].shape):
        yield np.stack(block)
        block = []
      block.append(image)
    if block:
      yield np.stack(block)

  def pixels(self) -> np.ndarray:
    """Each image as a row of 32 x 32 x 3 numbers in [0, 1]."""
    small = (resize(self[i], SIDE, SIDE) for i in range(len(self)))
    return np.stack([image.reshape(-1) for image in small]) / np.float32(255)


def folder_images(path: str, count: int | None) -> ImageSet:
  """The first `count` images of a folder (None: all), without grids of samples.

  Raises:
    ConfigError: there are fewer.
    DataError: the folder has no images.
  """
  everything = Folder(path)
  is_grid = lambda name: GRID.fullmatch(os.path.basename(name))
  names = [n for n in everything.names if not is_grid(n)]
  if not names or (count is not None and not 1 <= count <= len(names)):
    raise ConfigError(
      f"num is {count}, but {path} has {len(names)} images (--num)"
    )
  names = names[:count]
  source = Folder(path, only=tuple(names))
  return ImageSet(path, source, range(len(names)), names=names)


def evenly_spaced(source: Any, augment: Augment | None, count: int) -> ImageSet:
  """`count` images of a source, at evenly spaced indices."""
  count = min(count, len(source))
  indices = np.linspace(0, len(source) - 1, count).round().astype(int)
  return ImageSet("training images", source, indices.tolist(), augment)
