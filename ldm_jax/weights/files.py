"""Files of foreign weights, read into numpy; nothing in a file is executed."""

import io
import os
import pathlib
import struct
import zipfile

import numpy as np

from ldm_jax.weights.errors import WeightsError
from ldm_jax.weights.pickles import MAX_BYTES, read_pickle
from ldm_jax.weights.tensors import Parameter, Tensor

# torch/serialization.py: MAGIC_NUMBER and PROTOCOL_VERSION.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
OTHER_STARTS = {
  b"version https://git-lfs": "this is a git-lfs pointer; run `git lfs pull`",
  b"<": "this is a web page, not the file it stands for; download it again",
  b"GGUF": "this is a GGUF file; a torch file is needed",
  b"PK": "this is an empty or split zip; a torch file is needed",
}
# Whatever zipfile lets through when the bytes that it parses are damaged.
ZIP_ERRORS = (
  zipfile.BadZipFile,
  struct.error,
  EOFError,
  OSError,
  OverflowError,
  RuntimeError,
  ValueError,
)


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The state dict of a torch file (.pth, .pt, .ckpt), zip or legacy layout.

  {"state_dict": ...} is unwrapped, and only its storages are read. Arrays are
  read-only and, as in torch, tied tensors share memory.

  Raises:
    WeightsError: the file is cut short or damaged, is of another kind, holds
      something besides a flat dictionary of tensors, or names a Python object
      that is not on the short lists of tensors.py (malicious files do).
  """
  path = pathlib.Path(path)
  try:
    if not path.is_file():
      problem = "not a regular file" if path.exists() else "no such file"
      raise WeightsError(f"{problem}; the path of a torch file is needed")
    with path.open("rb") as file:
      return _read_file(file, path.stat().st_size)
  except WeightsError as error:
    raise WeightsError(f"{path}: {error}") from error


def _read_file(file, size):
  start = file.read(64)
  file.seek(0)
  if start.startswith(ZIP_START):
    return _read_zip(file, size)
  if start.startswith(LEGACY_START):
    return _read_legacy(file, size)
  if start[8:9] == b"{":
    raise WeightsError("this is a safetensors file; a torch file is needed")
  for prefix, explanation in OTHER_STARTS.items():
    if start.startswith(prefix):
      raise WeightsError(explanation)
  raise WeightsError(
    f"not a torch file: it is {size} bytes long and starts with {start[:8]!r}"
  )


def _read_zip(file, size):
  """torch >= 1.6: ROOT/data.pkl, and each storage in a member ROOT/data/KEY."""
  try:
    with zipfile.ZipFile(file) as archive:
      _check_members(archive.infolist(), size)
      return _read_members(archive, set(archive.namelist()))
  except WeightsError:
    raise
  except ZIP_ERRORS as error:
    raise WeightsError(f"truncated or damaged zip ({error})") from error


def _read_members(archive, names):
  pickles = [name for name in names if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise WeightsError(f"{len(pickles)} members named data.pkl; one is needed")
  if archive.getinfo(pickles[0]).file_size > MAX_BYTES:
    raise WeightsError(f"{pickles[0]} is over {MAX_BYTES} bytes long")
  root = pickles[0].removesuffix("data.pkl")
  order = f"{root}byteorder"
  if order in names and archive.read(order) != b"little":
    raise WeightsError("it is big-endian; little-endian is needed")

  def read(storage):
    name = f"{root}data/{storage.key}"
    if name not in names:
      raise WeightsError(f"zip member {name} is missing")
    return archive.read(name)  # and compares its checksum

  pickle = read_pickle(io.BytesIO(archive.read(pickles[0])))
  return _to_arrays(_state_dict(pickle.value), read)


def _check_members(members, size):
  """torch stores members plainly, so no member can be longer than the file."""
  names = [member.filename for member in members]
  if len(set(names)) != len(names):
    raise WeightsError("a zip member appears twice")
  if sum(member.file_size for member in members) > size:
    raise WeightsError("its zip members claim to be longer than the file")
  for member in members:
    is_plain = member.compress_type == zipfile.ZIP_STORED
    is_encrypted = member.flag_bits & 0x1
    parts = member.filename.split("/")
    if not is_plain or is_encrypted or member.compress_size != member.file_size:
      raise WeightsError(
        f"zip member {member.filename!r} is compressed or encrypted; torch "
        "stores its members plainly"
      )
    if ".." in parts or parts[0] == "" or "\\" in member.filename:
      raise WeightsError(f"zip member {member.filename!r} leaves the archive")


def _read_legacy(file, size):
  """torch < 1.6: five pickles, then each storage as a count and its values."""
  stream = io.BytesIO(file.read(MAX_BYTES))
  magic, protocol, system = (read_pickle(stream).value for _ in range(3))
  if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
    raise WeightsError(f"not torch's legacy protocol {LEGACY_PROTOCOL}")
  if not isinstance(system, dict) or not system.get("little_endian"):
    raise WeightsError("it is big-endian; little-endian is needed")
  pickle = read_pickle(stream)
  keys = read_pickle(stream).value
  if not _is_permutation(keys, pickle.storages):
    raise WeightsError("its list of storages is not the one its tensors use")
  file.seek(stream.tell())
  places = _walk_storages(file, size, [pickle.storages[k] for k in keys])

  def read(storage):
    file.seek(places[storage.key])
    return file.read(_byte_count(storage))

  return _to_arrays(_state_dict(pickle.value), read)


def _is_permutation(keys, names):
  is_strings = isinstance(keys, list) and all(type(k) is str for k in keys)
  return is_strings and sorted(keys) == sorted(names)


def _walk_storages(file, size, storages):
  """Where the values of each storage begin."""
  places = {}
  for storage in storages:
    count = int.from_bytes(file.read(8), "little")
    places[storage.key] = file.tell()
    end = file.tell() + _byte_count(storage)
    if end > size:
      raise WeightsError(
        f"truncated storage {storage.key}: it ends at {end} of {size} bytes"
      )
    if count != storage.count:
      raise WeightsError(
        f"storage {storage.key} holds {count} values, {storage.count} declared"
      )
    file.seek(end)
  return places


def _byte_count(storage):
  return storage.count * storage.dtype.itemsize


def _state_dict(value):
  """The flat dictionary of tensors in what was pickled."""
  if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
    value = value["state_dict"]
  if not isinstance(value, dict):
    raise WeightsError(f"it holds a {type(value).__name__}, not a state dict")
  tensors = {
    name: part.data if isinstance(part, Parameter) else part
    for name, part in value.items()
  }
  for name, tensor in tensors.items():
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
      raise WeightsError(
        f"entry {name!r} is of type {type(tensor).__name__}; needed is a flat "
        "dictionary of tensors"
      )
  return tensors


def _to_arrays(tensors, read):
  """Values by name; each storage is read once, when it is first met."""
  values = {}
  for tensor in tensors.values():
    storage = tensor.storage
    if storage.key not in values:
      data = read(storage)
      if len(data) != _byte_count(storage):
        raise WeightsError(
          f"storage {storage.key} has {len(data)} bytes; "
          f"{_byte_count(storage)} are needed"
        )
      values[storage.key] = np.frombuffer(data, storage.dtype)
  return {
    name: _window(values[tensor.storage.key], tensor)
    for name, tensor in tensors.items()
  }


def _window(values, tensor):
  if 0 in tensor.shape:
    return np.empty(tensor.shape, values.dtype)
  sizes_and_strides = zip(tensor.shape, tensor.strides, strict=True)
  # The stride of an axis of length one means nothing and may be anything.
  strides = [s * values.itemsize * (n > 1) for n, s in sizes_and_strides]
  return np.lib.stride_tricks.as_strided(
    values[tensor.offset :], tensor.shape, strides, writeable=False
  )
