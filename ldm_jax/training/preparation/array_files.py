"""NumPy files of known size, whose rows are written block by block.

They are written by system calls, not through memory maps: when a disk is full,
a call fails, but an access to mapped memory ends the process (SIGBUS).
"""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from ldm_jax.errors import DamagedFile, SaveFailed
from ldm_jax.files.atomic_writes import open_update, replace_file

NOT_RESERVED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class ArrayFile:
  """An .npy file that exists already, open for writing.

  Raises:
    DamagedFile: it holds an array of another shape or dtype.
  """

  def __init__(self, path: str, dtype: np.dtype, shape: tuple[int, ...]):
    """Opens it and reads its header."""
    file = open_update(path)
    self._file, self._dtype = file, np.dtype(dtype)
    try:
      np.lib.format.read_magic(file)
      header = np.lib.format.read_array_header_1_0(file)
    except ValueError:
      header = None
    self._begin = file.tell()
    self._row = math.prod(shape[1:]) * self._dtype.itemsize
    size = os.fstat(file.fileno()).st_size
    is_whole = size == self._begin + shape[0] * self._row
    if header != (shape, False, self._dtype) or not is_whole:
      raise DamagedFile(
        f"{path} is not what was begun there: {self._dtype} "
        f"{list(shape)}; remove its folder and prepare again"
      )

  def write(self, begin: int, rows: np.ndarray) -> None:
    """Writes rows from number `begin` on."""
    data = np.ascontiguousarray(rows, self._dtype)
    left = memoryview(data.reshape(-1).view(np.uint8))
    self._file.seek(self._begin + begin * self._row)
    while left:
      left = left[self._file.write(left) :]

  def flush(self) -> None:
    """Returns when everything is on the disk."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


@contextlib.contextmanager
def opened(
  folder: str, arrays: Mapping[str, np.ndarray], count: int
) -> Iterator[dict[str, ArrayFile]]:
  """The files of `create`, by name; arguments as there."""
  files: dict[str, ArrayFile] = {}
  try:
    for name, row in arrays.items():
      shape = (count, *row.shape)
      files[name] = ArrayFile(_path(folder, name), row.dtype, shape)
    yield files
  finally:
    for file in files.values():
      file.close()


def create(folder: str, arrays: Mapping[str, np.ndarray], count: int) -> None:
  """Creates FOLDER/NAME.npy of zeros, with all of its space on the disk.

  Args:
    arrays: a row of each, by name.
    count: rows.

  Raises:
    SaveFailed: the disk has no space for them.
  """
  needed = sum(count * array.nbytes for array in arrays.values())
  free = shutil.disk_usage(folder).free
  shortage = SaveFailed(
    f"{folder} needs {needed / 1e9:.3f} GB, and its disk has {free / 1e9:.3f} "
    "GB free; free some space, or choose another folder (--out)"
  )
  if free < needed:
    raise shortage
  for name, array in arrays.items():
    shape = (count, *array.shape)
    try:
      with replace_file(_path(folder, name)) as file:
        header = {
          "descr": np.lib.format.dtype_to_descr(array.dtype),
          "fortran_order": False,
          "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        _reserve(file, count * array.nbytes)
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise
      raise shortage from error


def _reserve(file: BinaryIO, size: int) -> None:
  """Extends a file by zeros that have a place on the disk, where it can."""
  file.flush()
  end = file.tell()
  if hasattr(os, "posix_fallocate") and size:
    try:
      os.posix_fallocate(file.fileno(), end, size)
    except OSError as error:
      if error.errno not in NOT_RESERVED:
        raise
  file.truncate(end + size)


def _path(folder: str, name: str) -> str:
  return os.path.join(folder, f"{name}.npy")
