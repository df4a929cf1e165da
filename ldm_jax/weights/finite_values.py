"""Refuses tensors with NaN or infinity, part by part."""

from collections.abc import Iterator

import numpy as np

from ldm_jax.errors import NonFiniteWeights
from ldm_jax.weights import mmap_files

PART = 2**24  # elements of a larger array that are checked at once


def check_finite(name: str, array: np.ndarray) -> np.ndarray:
  """The same tensor; raises NonFiniteWeights if it holds NaN or infinity."""
  if array.dtype.kind in "iub":
    return array
  count = sum(
    part.size - int(np.isfinite(part).sum()) for part in _parts(array)
  )
  if count:
    raise NonFiniteWeights(
      f"{name} has {count} values of {array.size} that are not finite; such "
      "weights generate no images"
    )
  return array


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
  """The array, or views of `PART` elements, of which one is in memory."""
  if array.size <= PART or not array.flags.c_contiguous:
    yield array
    return
  flat = array.reshape(-1)
  for start in range(0, array.size, PART):
    yield flat[start : start + PART]
    mmap_files.release_pages(flat[start : start + PART])
