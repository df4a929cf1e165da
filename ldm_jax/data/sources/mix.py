"""A weighted mixture of sources."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from ldm_jax.data.label_checks import path_of
from ldm_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Mix:
  """Examples of several sources in proportion to their weights.

  An epoch ends when every example has been used at least once; examples of
  sources that end earlier are repeated, in their order. After shuffling, a long
  run of batches holds each source in proportion to its weight.

  Attributes:
    sources: each a data.protocols.Source.
    weights: one per source, in any unit; examples of source k are in
      proportion to weights[k], whatever its size.

  Raises (at first use):
    DataError: a source is empty; or what the sources raise.
  """

  sources: tuple[Any, ...]
  weights: tuple[float, ...]

  def __post_init__(self):
    if not self.sources or len(self.sources) != len(self.weights):
      raise ValueError(
        f"{len(self.sources)} sources need as many weights, got "
        f"{len(self.weights)}"
      )
    if not all(0 < weight < math.inf for weight in self.weights):
      raise ValueError(f"weights must be positive, got {self.weights}")

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    source, place = self._place(index)
    return source[place]

  def path_of(self, index: int) -> str:
    """The path of example `index`, in its own source."""
    return path_of(*self._place(index))

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels, or () unless all sources have the same."""
    names = {tuple(getattr(each, "classes", ())) for each in self.sources}
    return names.pop() if len(names) == 1 else ()

  def _place(self, index: int) -> tuple[Any, int]:
    """An example's source and its index there."""
    if not 0 <= index < len(self):
      raise IndexError(f"the mix has {len(self)} examples, not {index}")
    number = int(np.searchsorted(self._ends, index, side="right"))
    begin = int(self._ends[number - 1]) if number else 0
    source = self.sources[number]
    return source, (int(index) - begin) % len(source)

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Where each source's part of an epoch ends."""
    sizes = [len(source) for source in self.sources]
    if 0 in sizes:
      raise DataError(f"source {sizes.index(0)} of the mix has no examples")
    pairs = list(zip(sizes, self.weights, strict=True))
    unit = max(size / weight for size, weight in pairs)
    counts = [max(size, round(unit * weight)) for size, weight in pairs]
    return np.cumsum(counts)
