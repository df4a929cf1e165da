"""NumPy's .npy and .npz files, of plain arrays; no code in them is run."""

import io
import os
import zipfile
from collections.abc import Collection

import numpy as np

from ldm_jax.errors import LdmJaxError

KINDS = "biuf"  # boolean, whole numbers and floats

Error = type[LdmJaxError]


def read_npy(
  path: str | os.PathLike, error: Error, *, is_mapped: bool = False
) -> np.ndarray:
  """The array of an .npy file, of booleans or numbers.

  Args:
    is_mapped: map it read-only; pages are read when they are accessed.

  Raises:
    error: it is missing, damaged, shorter than its shape, or of other values.
  """
  name = os.fspath(path)
  if not os.path.isfile(path):
    is_there = os.path.lexists(path)
    problem = "is no regular file" if is_there else "does not exist"
    raise error(f"{name} {problem}; expected an .npy file")
  # On arbitrary bytes numpy raises a dozen types, SyntaxError and
  # MemoryError among them. A map is checked against the size of the file.
  try:
    array = np.lib.format.open_memmap(name, mode="r")
  except Exception as found:
    reason = _reason(found)
    raise error(f"{name} is no .npy file of an array: {reason}") from found
  _check_kind(array, name, error)
  return array if is_mapped else np.array(array)


def read_npz(
  path: str | os.PathLike,
  names: Collection[str],
  error: Error,
  max_bytes: int,
) -> dict[str, np.ndarray]:
  """Those of the named arrays that an .npz file holds; numbers or text.

  Args:
    max_bytes: of these arrays; checked before anything is inflated.

  Raises:
    error: it is missing or damaged, or its arrays are larger.
  """
  name = os.fspath(path)
  if not os.path.isfile(path):
    raise error(f"{name} is no file; expected an .npz file")
  try:
    with zipfile.ZipFile(path) as archive:
      members = {
        member.filename.removesuffix(".npy"): member
        for member in archive.infolist()
      }
      kept = {key: members[key] for key in names if key in members}
      size = sum(member.file_size for member in kept.values())
      if size > max_bytes:
        raise error(f"{name} holds {size} bytes; at most {max_bytes} are read")
      return {
        key: _array_of(archive.read(member)) for key, member in kept.items()
      }
  except error:
    raise
  except Exception as found:  # see read_npy
    reason = _reason(found)
    raise error(f"{name} is no .npz file of arrays: {reason}") from found


def _array_of(data: bytes) -> np.ndarray:
  array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
  if array.dtype.kind not in KINDS + "US":
    raise ValueError(f"an array of {array.dtype}")
  return array


def _check_kind(array: np.ndarray, name: str, error: Error) -> None:
  if array.dtype.kind not in KINDS:
    raise error(f"{name} holds an array of {array.dtype}; expected numbers")


def _reason(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return " ".join(str(error).split())[:200] or type(error).__name__
