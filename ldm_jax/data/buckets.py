"""Batches of one shape each, for pictures of many (NovelAI 2022).

Every picture goes to the shape whose sides are most nearly in its own ratio. A
batch is of one shape, so a step is compiled once per shape. Which shape batch n
has, and which pictures, is a function of (the pictures' sizes, seed, n).
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Shape = tuple[int, int]  # height and width, in pixels

SHAPE = "bucket"  # of an example: the shape it is to be cut to


def shapes(
  area: int, multiple: int = 64, most: float = 2.0
) -> tuple[Shape, ...]:
  """Shapes of about `area` pixels, squarest first, tall and wide in turn.

  Args:
    multiple: divides every side.
    most: the longer side over the shorter one, at most.

  Raises:
    ValueError: no such shape.
  """
  found = set()
  side = multiple
  while side * side <= area * most:
    other = round(area / side / multiple) * multiple
    if other and max(side, other) <= most * min(side, other):
      found |= {(side, other), (other, side)}
    side += multiple
  if not found:
    raise ValueError(
      f"no shape of {area} pixels has sides that {multiple} divides; try a "
      "smaller multiple"
    )
  return tuple(sorted(found, key=lambda s: (abs(np.log(s[0] / s[1])), s)))


@dataclasses.dataclass(frozen=True)
class Buckets:
  """Examples in the order in which batches take them, each with its shape.

  A shape that has less than a batch of pictures gives them to the next one in
  ratio that has more. In an epoch, each shape's pictures are shuffled and their
  full batches taken; what is left over comes in another epoch. The batches of
  all shapes are shuffled.

  Attributes:
    source: whose `sizes` are heights and widths.
  """

  source: Any
  shapes: tuple[Shape, ...]
  batch: int
  seed: int

  def __len__(self) -> int:
    return sys.maxsize // self.batch * self.batch

  def __getitem__(self, place: int) -> dict[str, Any]:
    index, shape = self.index(place)
    return {**self.source[index], SHAPE: shape}

  def index(self, place: int) -> tuple[int, Shape]:
    """Which example comes at a place, and the shape it is to be cut to."""
    number, row = divmod(int(place), self.batch)
    epoch, number = divmod(number, self._total)
    order, members = self._epoch(epoch)
    bucket, block = order[number]
    index = members[bucket][block * self.batch + row]
    return int(index), self.shapes[bucket]

  def check(self) -> None:
    """Reads the sizes.

    Raises:
      ValueError: there is not one batch of examples, or the source does not
        know its sizes.
    """
    if not self.shapes:
      raise ValueError("buckets need shapes; see data.buckets.shapes")
    _ = self.members

  @functools.cached_property
  def members(self) -> dict[int, Int[np.ndarray, " n"]]:
    """The examples of every shape that has a batch of them, by its number.

    Raises as `check` does.
    """
    sizes = getattr(self.source, "sizes", None)
    if sizes is None:
      raise ValueError(
        "the source does not know how large its pictures are; buckets need a "
        "Folder or Shards"
      )
    if len(sizes) < self.batch:
      raise ValueError(
        f"{len(sizes)} examples make no batch of {self.batch}; try a smaller "
        "data.batch"
      )
    away = _distances(np.asarray(sizes), self.shapes)
    left = set(range(len(self.shapes)))
    while True:
      allowed = np.array(sorted(left))
      nearest = allowed[np.argmin(away[:, allowed], axis=1)]
      counts = {n: int((nearest == n).sum()) for n in left}
      few = [n for n in left if counts[n] < self.batch]
      if not few:
        return {n: np.flatnonzero(nearest == n) for n in sorted(left)}
      left.discard(min(few, key=lambda n: (counts[n], n)))

  @property
  def _total(self) -> int:
    """Batches in an epoch."""
    return sum(len(m) // self.batch for m in self.members.values())

  def _epoch(
    self, number: int
  ) -> tuple[Sequence[tuple[int, int]], dict[int, np.ndarray]]:
    """(bucket, block) of every batch, and each bucket's shuffled examples."""
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
  """Between ratios of sides, as logarithms."""
  ratio = lambda pairs: np.log(pairs[:, 0] / pairs[:, 1])
  return np.abs(ratio(sizes)[:, None] - ratio(np.asarray(shapes))[None, :])
