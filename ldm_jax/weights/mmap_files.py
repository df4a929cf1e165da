"""Memory-mapped files, and checked shapes."""

import contextlib
import math
import mmap
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.lib import array_utils

from ldm_jax.errors import WeightsError
from ldm_jax.files.printable import printable

MAX_RANK = 32

# By numpy's name, which torch and flax use too.
DTYPES = {
  dtype.name: dtype
  for dtype in map(
    np.dtype,
    [
      *("?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8"),
      *("<f2", "<f4", "<f8", "<c8", "<c16"),
      ml_dtypes.bfloat16,
      ml_dtypes.float8_e4m3fn,
      ml_dtypes.float8_e4m3fnuz,
      ml_dtypes.float8_e5m2,
      ml_dtypes.float8_e5m2fnuz,
      ml_dtypes.float8_e8m0fnu,
    ],
  )
}


@contextlib.contextmanager
def error_context(path: str | os.PathLike) -> Iterator[None]:
  """Adds the path to a WeightsError of the block, on one line."""
  try:
    yield
  except WeightsError as error:
    raise type(error)(printable(f"{path}: {error}")) from error


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Any]:
  """The file, open for reading, within `error_context`.

  Raises:
    WeightsError: it is not there, not a regular file or may not be read.
  """
  with error_context(path):
    path = pathlib.Path(path)
    if not path.is_file():
      problem = "not a regular file" if path.exists() else "no such file"
      raise WeightsError(f"{problem}; the path of a file of weights is needed")
    try:
      with path.open("rb") as file:
        yield file
    except OSError as error:
      raise WeightsError(f"it cannot be read ({error})") from error


def map_file(file: BinaryIO) -> np.ndarray:
  """All bytes of an open file, memory-mapped read-only; valid after closing.

  Pages are read when they are accessed. A mapped file must not be written to;
  replace it with another one instead.
  """
  if not os.fstat(file.fileno()).st_size:
    return np.empty(0, np.uint8)
  mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  return np.frombuffer(mapping, np.uint8)


def release_pages(array: np.ndarray) -> None:
  """Frees the pages that were read of a mapped array; no effect on others.

  They are read again when they are accessed.
  """
  base = array
  while isinstance(base.base, np.ndarray):
    base = base.base
  mapping = getattr(base.base, "obj", base.base)
  if not isinstance(mapping, mmap.mmap) or not hasattr(mapping, "madvise"):
    return
  start, end = (
    address - base.ctypes.data for address in array_utils.byte_bounds(array)
  )
  start -= start % mmap.PAGESIZE
  if end > start:
    mapping.madvise(mmap.MADV_DONTNEED, start, end - start)


def as_array(data: np.ndarray, dtype: np.dtype, shape: Any) -> np.ndarray:
  """A view of bytes as a C-ordered array.

  Raises:
    WeightsError: the number of bytes does not fit the shape, or the shape is
      invalid.
  """
  check_shape(shape)
  if data.size != math.prod(shape) * dtype.itemsize:
    raise WeightsError(
      f"{data.size} bytes for {dtype.name} of shape {list(shape)}; expected "
      f"{math.prod(shape) * dtype.itemsize}"
    )
  return data.view(dtype).reshape(shape)


def check_shape(shape: Any):
  """Checks that a value is a shape that numpy can allocate.

  Raises:
    WeightsError: it is not.
  """
  if not isinstance(shape, (list, tuple)) or len(shape) > MAX_RANK:
    raise WeightsError(f"a shape is not a list of at most {MAX_RANK} sizes")
  if not all(map(is_count, shape)):
    # Not printed as a whole: a pickled list may contain itself.
    wrong = next(size for size in shape if not is_count(size))
    is_number = isinstance(wrong, (int, float))
    kind = str(wrong)[:20] if is_number else f"a {type(wrong).__name__}"
    raise WeightsError(f"a shape has an invalid size, {kind}")
  # numpy multiplies the sizes of an empty array too, and must not overflow.
  if math.prod(n for n in shape if n) >= 2**48:
    raise WeightsError(f"an array of shape {list(shape)} is too large")


def is_count(number: Any) -> bool:
  """Whether it is an int that a size or an offset can have."""
  return type(number) is int and 0 <= number < 2**48
