"""The two layouts of torch files: zip archives, and the legacy format."""

import functools
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.file_types import (
  LEGACY_MAGIC,
  START_LENGTH,
  TORCH_LEGACY,
  TORCH_ZIP,
  file_type,
  raise_wrong_type,
)
from ldm_jax.weights.mmap_files import map_file
from ldm_jax.weights.torch.pickle_reader import MAX_BYTES, read_pickle
from ldm_jax.weights.torch.tensors import Storage

LEGACY_PROTOCOL = 1001  # torch/serialization.py: PROTOCOL_VERSION

# All that zipfile raises for damaged files.
ZIP_ERRORS = (
  zipfile.BadZipFile,
  struct.error,
  EOFError,
  OSError,
  OverflowError,
  RuntimeError,
  ValueError,
)
# A member's local header: 30 bytes, of which the last four are the lengths of
# the name and of the extra field that follow (APPNOTE.TXT, section 4.3.7).
LOCAL_HEADER = 30
LOCAL_LENGTHS = struct.Struct("<HH")


class Archive(NamedTuple):
  """The pickled value, and a function from its storages to their bytes."""

  value: Any
  read: Callable[[Storage], np.ndarray]


def read_archive(file: BinaryIO) -> Archive:
  """Reads the pickle of an open torch file; storages are memory-mapped.

  Raises:
    WeightsError: the file is of another type, or damaged. `Archive.read` raises
      it, too, if the checksum of a storage in a zip is wrong.
  """
  data = map_file(file)
  start = data[:START_LENGTH].tobytes()
  if file_type(start) == TORCH_ZIP:
    return _read_zip(file, data)
  if file_type(start) == TORCH_LEGACY:
    return _read_legacy(file, data)
  return raise_wrong_type(start, data.size, "torch")


def _read_zip(file, data):
  """torch >= 1.6: ROOT/data.pkl, and each storage in a member ROOT/data/KEY."""
  try:
    with zipfile.ZipFile(file) as archive:
      members = {member.filename: member for member in archive.infolist()}
      _check_members(archive.infolist(), data.size)
  except WeightsError:
    raise
  except ZIP_ERRORS as error:
    raise WeightsError(f"truncated or damaged zip ({error})") from error
  pickles = [name for name in members if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise WeightsError(f"{len(pickles)} members named data.pkl; one is needed")
  if members[pickles[0]].file_size > MAX_BYTES:
    raise WeightsError(f"{pickles[0]} is over {MAX_BYTES} bytes long")
  root = pickles[0].removesuffix("data.pkl")
  read = functools.partial(_read_member, data, members)
  order = f"{root}byteorder"
  if order in members and read(order).tobytes() != b"little":
    raise WeightsError("it is big-endian; little-endian is needed")
  pickle = read_pickle(io.BytesIO(read(pickles[0])))
  for storage in pickle.storages.values():
    _check_storage(storage, members.get(f"{root}data/{storage.key}"))
  return Archive(pickle.value, lambda s: read(f"{root}data/{s.key}"))


def _check_storage(storage, member):
  if member is None:
    raise WeightsError(f"the zip member of storage {storage.key} is missing")
  if member.file_size != storage.size:
    raise WeightsError(
      f"storage {storage.key} has {member.file_size} bytes; {storage.size} are "
      "needed"
    )


def _read_member(data, members, name):
  """The bytes of an uncompressed member, with its checksum compared."""
  member = members[name]
  head = data[member.header_offset :][:LOCAL_HEADER].tobytes()
  if len(head) < LOCAL_HEADER or not head.startswith(b"PK\x03\x04"):
    raise WeightsError(f"truncated or damaged zip: {name!r} has no header")
  start = member.header_offset + LOCAL_HEADER
  start += sum(LOCAL_LENGTHS.unpack(head[-LOCAL_LENGTHS.size :]))
  content = data[start : start + member.file_size]
  if content.size != member.file_size:
    raise WeightsError(f"truncated or damaged zip: {name!r} is cut short")
  if zlib.crc32(content) != member.CRC:
    raise WeightsError(f"damaged zip: bad CRC-32 of {name!r}")
  return content


def _check_members(members, size):
  """Members are uncompressed, so that none can be longer than the file."""
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


def _read_legacy(file, data):
  """torch < 1.6: five pickles, then each storage as its count and values."""
  length = min(data.size, MAX_BYTES)
  with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as stream:
    magic, protocol, system = (read_pickle(stream).value for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
      raise WeightsError(f"not torch's legacy protocol {LEGACY_PROTOCOL}")
    if not isinstance(system, dict) or not system.get("little_endian"):
      raise WeightsError("it is big-endian; little-endian is needed")
    pickle = read_pickle(stream)
    keys = read_pickle(stream).value
    start = stream.tell()
  if not _is_permutation(keys, pickle.storages):
    raise WeightsError("its list of storages is not the one its tensors use")
  storages = [pickle.storages[key] for key in keys]
  offsets = _storage_offsets(data, start, storages)
  return Archive(
    pickle.value, lambda s: data[offsets[s.key] : offsets[s.key] + s.size]
  )


def _is_permutation(keys, names):
  is_strings = isinstance(keys, list) and all(type(k) is str for k in keys)
  return is_strings and sorted(keys) == sorted(names)


def _storage_offsets(data, start, storages):
  """Where the values of each storage begin, by key."""
  offsets = {}
  for storage in storages:
    count = int.from_bytes(data[start : start + 8].tobytes(), "little")
    offsets[storage.key] = start + 8
    start += 8 + storage.size
    if start > data.size:
      raise WeightsError(
        f"truncated storage {storage.key}: it ends at {start} of {data.size} "
        "bytes"
      )
    if count != storage.count:
      raise WeightsError(
        f"storage {storage.key} holds {count} values, {storage.count} declared"
      )
  return offsets
