"""The sums of `checksums` by numpy, without a compilation for each shape."""

from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
BLOCK = 2**20  # elements hashed at once


def sums(leaf: Any) -> UInt32[np.ndarray, "3"]:
  """Both sums and the number of non-finite blocks of this process's part.

  Of parts that several devices hold, one is counted; the sums over all
  processes, modulo 2^32, are the array's.
  """
  total = np.zeros(3, np.uint32)
  for array, index in _parts(leaf):
    total += _part_sums(array, index, np.shape(leaf))
  return total


def _parts(leaf: Any) -> list[tuple[np.ndarray, tuple[slice, ...]]]:
  """Arrays of at least one axis, and where each lies in the global one."""
  if isinstance(leaf, jax.Array):
    return [
      (np.atleast_1d(np.asarray(shard.data)), shard.index)
      for shard in leaf.addressable_shards
      if shard.replica_id == 0
    ]
  # As jax would hold it: 32 bits.
  dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
  array = np.asarray(leaf).astype(dtype, copy=False)
  is_first = jax.process_index() == 0
  return [(np.atleast_1d(array), ())] if is_first else []


def _part_sums(
  array: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]
) -> UInt32[np.ndarray, "3"]:
  total = np.zeros(3, np.uint32)
  starts = [x.start or 0 for x in index] or [0] * array.ndim
  strides = [1] * array.ndim
  for axis in reversed(range(array.ndim - 1)):
    strides[axis] = strides[axis + 1] * shape[axis + 1]
  rows = max(1, BLOCK // max(1, array[:1].size))
  for row in range(0, len(array), rows):
    block = array[row : row + rows]
    starts_here = [starts[0] + row, *starts[1:]]
    total += _block_sums(block, _positions(block.shape, starts_here, strides))
  return total


def _block_sums(block: np.ndarray, positions: np.ndarray) -> np.ndarray:
  # ml_dtypes' kinds are of no numpy kind; integers have no infinity.
  is_float = jax.dtypes.issubdtype(block.dtype, np.inexact)
  bad = is_float and not np.isfinite(block).all()
  if block.dtype == np.bool_:
    block = block.astype(np.uint8)
  bits = np.ascontiguousarray(block).view(UNSIGNED[block.dtype.itemsize])
  first = _hash(bits.astype(np.uint32) ^ _hash(positions))
  second = _hash(first ^ np.uint32(0x9E3779B9))
  both = [np.sum(x, dtype=np.uint32) for x in (first, second)]
  return np.array([*both, bad], np.uint32)


def _positions(
  shape: tuple[int, ...], starts: list[int], strides: list[int]
) -> np.ndarray:
  """Every element's index in row-major order, modulo 2^32."""
  positions = np.zeros((1,) * len(shape), np.uint32)
  for axis, (size, start, stride) in enumerate(
    zip(shape, starts, strides, strict=True)
  ):
    along = np.arange(start, start + size, dtype=np.uint64) * np.uint64(stride)
    rest = (1,) * (len(shape) - axis - 1)
    positions = positions + along.astype(np.uint32).reshape(-1, *rest)
  return positions


def _hash(x: np.ndarray) -> np.ndarray:
  """`checksums._hash`."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))
