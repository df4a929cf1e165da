"""Arrays that are read when they are needed, one at a time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ldm_jax.weights.mmap_files import release_pages


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
  """An array that `np.asarray` reads, anew each time.

  Attributes:
    read: returns the array, of this shape and dtype.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Size in memory once it is read."""
    return self.size * self.dtype.itemsize

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    array = self.read()
    return array if dtype is None else array.astype(dtype, copy=False)


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """A C-ordered array of another dtype; frees pages of a file it was read of.

  Doubles are rounded to float32 first, as all that is loaded.
  """
  if array.dtype == np.float64 and dtype != array.dtype:
    array = array.astype(np.float32)
  found = np.ascontiguousarray(array, dtype)
  if not np.may_share_memory(found, array):
    release_pages(array)
  return found
