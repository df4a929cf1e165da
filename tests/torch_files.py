"""Writes torch files without torch, byte for byte; catches refusals."""

import collections
import contextlib
import io
import mmap
import pathlib
import pickle
import sys
import tracemalloc
import zipfile
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

from ldm_jax.errors import WeightsError
from ldm_jax.weights.files import read_torch

KINDS = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "float64": "DoubleStorage",
  "int64": "LongStorage",
  "int32": "IntStorage",
  "int16": "ShortStorage",
  "int8": "CharStorage",
  "uint8": "ByteStorage",
  "bool": "BoolStorage",
  "complex64": "ComplexFloatStorage",
  "complex128": "ComplexDoubleStorage",
}
# These have no storage class: torch saves bytes and a dtype.
UNTYPED_KINDS = (
  "uint16",
  "uint32",
  "uint64",
  "float8_e4m3fn",
  "float8_e4m3fnuz",
  "float8_e5m2",
  "float8_e5m2fnuz",
  "float8_e8m0fnu",
)
DTYPES = [
  np.dtype(getattr(ml_dtypes, name, name)) for name in (*KINDS, *UNTYPED_KINDS)
]


class Name:
  """A global that is pickled by name and need not exist."""

  def __init__(self, module, name):
    self.text_name = f"{module}.{name}"
    self.text = f"c{module}\n{name}\n".encode()

  def __call__(self):
    raise AssertionError("only its name is used")


class Reduced:
  """Pickled as a call, with an optional state that is set afterwards."""

  def __init__(self, name, arguments, *state):
    self.call = name, arguments, *state

  def __reduce_ex__(self, protocol):
    return self.call


REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_UNTYPED = Name("torch._utils", "_rebuild_tensor_v3")
STORAGES = {kind: Name("torch", name) for kind, name in KINDS.items()}
UNTYPED = Name("torch.storage", "UntypedStorage")


class Storage:
  """Flat values; `count` may be a wrong number of them."""

  def __init__(self, values, count=None):
    values = np.ascontiguousarray(values).reshape(-1)
    self.kind = STORAGES.get(values.dtype.name, UNTYPED)
    self.values = values.view(np.uint8) if self.kind is UNTYPED else values
    self.count = self.values.size if count is None else count


class Tensor:
  """A strided view of a storage, in units of elements, unchecked."""

  def __init__(self, storage, shape, strides, offset=0, extra=(), by=REBUILD):
    hooks = (False, collections.OrderedDict(), *extra)
    self.call = by, (storage, offset, shape, strides, *hooks)

  def __reduce_ex__(self, protocol):
    return self.call


def tensor(array):
  """A tensor with its own storage; a transposed array stays transposed."""
  array = np.asarray(array)
  strides = tuple(s // array.itemsize for s in array.strides)
  if not array.size:
    strides = tuple(
      int(np.prod([max(n, 1) for n in array.shape[i + 1 :]]))
      for i in range(array.ndim)
    )
  storage = Storage(array.T if array.flags.f_contiguous else array)
  if storage.kind is not UNTYPED:
    return Tensor(storage, array.shape, strides)
  dtype = (Name("torch", array.dtype.name),)
  by = REBUILD_UNTYPED
  return Tensor(storage, array.shape, strides, extra=dtype, by=by)


class Pickler(pickle._Pickler):
  """Protocol 2 with persistent ids for storages.

  Python's own implementation, so that names can be written without an import.
  """

  dispatch: ClassVar = dict(pickle._Pickler.dispatch)

  def __init__(self, file, is_legacy):
    super().__init__(file, protocol=2)
    self.is_legacy, self.storages = is_legacy, {}

  def persistent_id(self, value):
    if not isinstance(value, Storage):
      return None
    key = self.storages.setdefault(id(value), (str(len(self.storages)), value))
    view = (None,) if self.is_legacy else ()
    return ("storage", value.kind, key[0], "cpu", value.count, *view)

  def save_name(self, name):
    self.write(name.text)
    self.memoize(name)

  dispatch[Name] = save_name


def pickled(value, is_legacy=False):
  """The pickle of a value, and its storages in order."""
  file = io.BytesIO()
  pickler = Pickler(file, is_legacy)
  pickler.dump(value)
  return file.getvalue(), [s for _, s in pickler.storages.values()]


def write_zip(path, value, *, data=None, compression=zipfile.ZIP_STORED):
  """The layout of torch >= 1.6; `data` replaces the pickle."""
  text, storages = pickled(value)
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", text if data is None else data)
    archive.writestr("archive/byteorder", sys.byteorder)
    for key, storage in enumerate(storages):
      archive.writestr(f"archive/data/{key}", storage.values.tobytes())
    archive.writestr("archive/version", "3\n")


def write_legacy(path, value, *, data=None):
  """The layout of torch < 1.6."""
  text, storages = pickled(value, is_legacy=True)
  sizes = {"short": 2, "int": 4, "long": 4}
  system = {
    "protocol_version": 1001,
    "little_endian": sys.byteorder == "little",
    "type_sizes": sizes,
  }
  with pathlib.Path(path).open("wb") as file:
    for head in (0x1950A86A20F9469CFC6C, 1001, system):
      file.write(pickle.dumps(head, protocol=2))
    file.write(text if data is None else data)
    # torch sorts storages by key, an address there: any order is possible.
    keys = [str(key) for key in reversed(range(len(storages)))]
    file.write(pickle.dumps(keys, protocol=2))
    for storage in reversed(storages):
      file.write(storage.values.size.to_bytes(8, "little"))
      file.write(storage.values.tobytes())


WRITERS = {"zip": write_zip, "legacy": write_legacy}


def write(layout, path, value, **changes):
  WRITERS[layout](path, value, **changes)


def refusal(path):
  """The error message for a file that is refused."""
  with pytest.raises(WeightsError) as caught:
    dict(read_torch(path))
  message = str(caught.value)
  assert message.startswith(str(path)) and "\n" not in message
  return message


@contextlib.contextmanager
def little_memory(limit):
  """Fails if the block needs more than `limit` bytes.

  Counts Python's allocations and the resident memory, with mapped files.
  """
  pages = pathlib.Path("/proc/self/statm")
  before = pages.read_text().split() if pages.exists() else None
  tracemalloc.start()
  try:
    yield
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < limit
  if before:
    grown = int(pages.read_text().split()[1]) - int(before[1])
    assert grown * mmap.PAGESIZE < limit
