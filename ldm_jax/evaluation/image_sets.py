"""Sets of pictures that are looked through a block at a time."""

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

GRID = re.compile(r"grid(_\d+)?\.png")  # what sample.py lays beside pictures
SIDE = 32  # of pictures that are compared by their pixels


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Some pictures of a source.

  Attributes:
    name: to the user.
    source: examples with an image.
    places: which of them.
    augment: how they are cut, or None.
    names: of files, where pictures are such.
  """

  name: str
  source: Any
  places: Sequence[int]
  augment: Augment | None = None
  names: Sequence[str] = ()

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
    item = {"image": self.source[self.places[i]]["image"]}
    return (self.augment.center(item) if self.augment else item)["image"]

  def captions(self) -> list[str]:
    """Of all pictures; empty if one has none."""
    found = []
    for i in self.places:
      caption = self.source[i].get("caption")
      if caption is None:  # the first one tells, and the rest is not read
        return []
      found.append(caption)
    return found

  def blocks(self, size: int) -> Iterator[Images]:
    """All pictures in order, of one size in a block, `size` at most."""
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
    """Every picture as a row of 32 x 32 x 3 numbers in [0, 1]."""
    small = (resize(self[i], SIDE, SIDE) for i in range(len(self)))
    return np.stack([image.reshape(-1) for image in small]) / np.float32(255)


def folder_images(path: str, count: int | None) -> ImageSet:
  """The first pictures of a folder, but for the grids that we lay there.

  Raises:
    ConfigError: there are not so many.
    DataError: there are none.
  """
  everything = Folder(path)
  is_grid = lambda name: GRID.fullmatch(os.path.basename(name))
  names = [n for n in everything.names if not is_grid(n)]
  if not names or (count is not None and not 1 <= count <= len(names)):
    raise ConfigError(f"--num is {count}, but {path} has {len(names)} pictures")
  names = names[:count]
  source = Folder(path, only=tuple(names))
  return ImageSet(path, source, range(len(names)), names=names)


def evenly_spaced(source: Any, augment: Augment | None, count: int) -> ImageSet:
  """`count` pictures of a source, from all over it."""
  count = min(count, len(source))
  places = np.linspace(0, len(source) - 1, count).round().astype(int)
  return ImageSet("training pictures", source, places.tolist(), augment)
