"""Aspect-ratio buckets: batches of one shape each (NovelAI 2022).

Every image is cropped to the shape nearest to its own aspect ratio. A batch is
of one shape, so a step is compiled once per shape. Which shape batch n has, and
which images, is a function of (the images' sizes, seed, n).
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ldm_jax.errors import ConfigError, DataError

Shape = tuple[int, int]  # height and width, in pixels

SHAPE = "bucket"  # key of an example: the shape it is to be cropped to


def shapes(
  area: int, multiple: int = 64, most: float = 2.0
) -> tuple[Shape, ...]:
  """Shapes of about `area` pixels, squarest first, portrait and landscape.

  Args:
    multiple: divides every side.
    most: the longer side over the shorter one, at most.

  Raises:
    ConfigError: there is no such shape.
  """
  found = set()
  side = multiple
  while side * side <= area * most:
    other = round(area / side / multiple) * multiple
    if other and max(side, other) <= most * min(side, other):
      found |= {(side, other), (other, side)}
    side += multiple
  if not found:
    raise ConfigError(
      f"no shape of {area} pixels has sides that {multiple} divides; try a "
      "smaller multiple"
    )
  return tuple(sorted(found, key=lambda s: (abs(np.log(s[0] / s[1])), s)))


@dataclasses.dataclass(frozen=True)
class Buckets:
  """The endless stream of examples that batches are cut from, with shapes.

  In an epoch each shape's images are shuffled and its full batches taken; the
  remainder comes in another epoch. The batches of all shapes are shuffled.

  Attributes:
    source: a Source with `sizes`, heights and widths.
    shapes: heights and widths of the buckets.
    batch: examples of a batch.
    seed: of the order.
  """

  source: Any
  shapes: tuple[Shape, ...]
  batch: int
  seed: int

  def __len__(self) -> int:
    return sys.maxsize // self.batch * self.batch

  def __getitem__(self, position: int) -> dict[str, Any]:
    index, shape = self.index(position)
    return {**self.source[index], SHAPE: shape}

  def index(self, position: int) -> tuple[int, Shape]:
    """The example at a position of the stream, and the shape to crop it to."""
    number, row = divmod(int(position), self.batch)
    epoch, number = divmod(number, self._total)
    order, members = self._epoch(epoch)
    bucket, block = order[number]
    index = members[bucket][block * self.batch + row]
    return int(index), self.shapes[bucket]

  def check(self) -> None:
    """Reads the sizes.

    Raises:
      ConfigError: there are no shapes, or the source has no `sizes`.
      DataError: there are fewer examples than a batch.
    """
    if not self.shapes:
      raise ConfigError("buckets need shapes; see data.buckets.shapes")
    _ = self.members

  @functools.cached_property
  def members(self) -> dict[int, Int[np.ndarray, " n"]]:
    """Indices of the examples of every shape, by the number of the shape.

    A shape with fewer examples than a batch is left out, and its examples go
    to the next nearest one.

    Raises as `check` does.
    """
    sizes = getattr(self.source, "sizes", None)
    if sizes is None:
      raise ConfigError(
        f"buckets need a source with `sizes`, the heights and widths of its "
        f"images, such as Folder or Shards; {type(self.source).__name__} has "
        "none"
      )
    if len(sizes) < self.batch:
      raise DataError(
        f"{len(sizes)} examples make no batch of {self.batch}; try a smaller "
        "data.batch"
      )
    distances = _distances(np.asarray(sizes), self.shapes)
    kept = set(range(len(self.shapes)))
    while True:
      allowed = np.array(sorted(kept))
      nearest = allowed[np.argmin(distances[:, allowed], axis=1)]
      counts = {n: int((nearest == n).sum()) for n in kept}
      small = [n for n in kept if counts[n] < self.batch]
      if not small:
        return {n: np.flatnonzero(nearest == n) for n in sorted(kept)}
      kept.discard(min(small, key=lambda n: (counts[n], n)))

  @property
  def _total(self) -> int:
    """Batches in an epoch."""
    return sum(len(m) // self.batch for m in self.members.values())

  def _epoch(
    self, number: int
  ) -> tuple[Sequence[tuple[int, int]], dict[int, np.ndarray]]:
    """(bucket, batch of it) in order, and each bucket's shuffled examples."""
    return _shuffled(self, number)


@functools.lru_cache(maxsize=4)
def _shuffled(buckets: Buckets, epoch: int):
  rng = np.random.default_rng([buckets.seed, epoch])
  members = {n: rng.permutation(m) for n, m in buckets.members.items()}
  blocks = [
    (n, block)
    for n, m in members.items()
    for block in range(len(m) // buckets.batch)
  ]
  order = [blocks[i] for i in rng.permutation(len(blocks))]
  return order, members


def _distances(
  sizes: Int[np.ndarray, "n 2"], shapes: Sequence[Shape]
) -> Float[np.ndarray, "n k"]:
  """Absolute differences of log aspect ratios."""
  ratio = lambda pairs: np.log(pairs[:, 0] / pairs[:, 1])
  return np.abs(ratio(sizes)[:, None] - ratio(np.asarray(shapes))[None, :])
