"""torch files (.bin, .pth, .pt, .ckpt); nothing in them is executed."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.mmap_files import error_context, open_weights
from ldm_jax.weights.torch.archive_layouts import read_archive
from ldm_jax.weights.torch.numpy_arrays import Encoded, Format, NumpyArray
from ldm_jax.weights.torch.stub_objects import StubObject
from ldm_jax.weights.torch.tensors import (
  Global,
  Parameter,
  ParameterDict,
  Storage,
  Tensor,
)

MAX_DEPTH = 64


class TorchTensors(Mapping):
  """Arrays by name, each a view of the memory-mapped file."""

  def __init__(
    self,
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    storage: Callable[[Storage], np.ndarray],
  ):
    self._path, self._tensors, self._storage = path, tensors, storage

  def __getitem__(self, name: str) -> np.ndarray:
    tensor = self._tensors[name]
    with error_context(self._path):
      return _to_array(tensor, self._storage)

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)


def read_torch(path: str | os.PathLike) -> TorchTensors:
  """The state dict of a torch file, zip or legacy layout.

  Of a checkpoint of Lightning only "state_dict" is read. The file is
  memory-mapped: only the pickle is read here. When a storage in a zip is first
  used, its checksum is compared; the legacy layout has none. Arrays are
  read-only and, as in torch, tied tensors share memory.

  Raises:
    WeightsError: the file is truncated or damaged, is of another type, holds
      anything but a flat dictionary of tensors, or names a Python object that
      tensors.py and stub_objects.py do not list (as malicious files do). A
      wrong checksum is raised when the array is accessed.
  """
  with open_weights(path) as file:
    archive = read_archive(file)
    tensors = _state_dict(archive.value)
  return TorchTensors(path, tensors, functools.cache(archive.read))


def read_pickled(path: str | os.PathLike) -> Any:
  """The content of any torch file: plain data, with tensors as arrays.

  For files that are not a state dict, such as {"string_to_param": {"*": T}} of
  textual inversion. Other Python objects are read as `StubObject`. Arrays are
  memory-mapped as by `read_torch`, and every checksum is compared.

  Raises:
    WeightsError: as `read_torch`, but any structure is allowed.
  """
  with open_weights(path) as file:
    archive = read_archive(file)
    return _to_plain(archive.value, functools.cache(archive.read), {}, 0)


def read_step(path: str | os.PathLike) -> int | None:
  """ "global_step" of a Lightning checkpoint; None if there is none.

  Raises:
    WeightsError: as `read_torch`, but any structure is allowed.
  """
  with open_weights(path) as file:
    value = read_archive(file).value
  step = value.get("global_step") if isinstance(value, dict) else None
  return step if type(step) is int else None


def _state_dict(value):
  """The flat dictionary of tensors in a pickled value."""
  if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
    value = value["state_dict"]
  if not isinstance(value, dict):
    raise WeightsError(f"it holds a {_kind(value)}, not a state dict")
  tensors = {
    name: part.data if isinstance(part, Parameter) else part
    for name, part in value.items()
  }
  for name, tensor in tensors.items():
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
      raise WeightsError(
        f"entry {str(name)[:200]!r} is of type {_kind(tensor)}; expected a "
        "flat dictionary of tensors"
      )
  return tensors


def _kind(value):
  return value.name if isinstance(value, StubObject) else type(value).__name__


def _to_plain(value, storage, known, depth):
  """Converts tensors to arrays; shared objects are converted once.

  Args:
    known: results by the id of what was converted.
  """
  if depth > MAX_DEPTH:
    raise WeightsError(f"its data is nested over {MAX_DEPTH} deep")
  if id(value) in known:
    return known[id(value)]
  convert = lambda part: _to_plain(part, storage, known, depth + 1)
  match value:
    case Parameter(data):
      result = convert(data)
    case Tensor():
      result = _to_array(value, storage)
    case Storage():
      raise WeightsError("it holds a bare storage; a tensor is needed")
    case NumpyArray(state):
      data = state[-1] if isinstance(state, tuple) and state else None
      result = value.read(convert(data))
    case Encoded():
      result = value.read()
    case Global(name):
      result = StubObject(name)
    case Format():
      result = StubObject("numpy.dtype")
    case dict(items) | ParameterDict(items):
      result = {key: convert(part) for key, part in items.items()}
    case list() | tuple():
      result = type(value)(map(convert, value))
    case _:
      result = value
  known[id(value)] = result
  return result


def _to_array(tensor, storage):
  if 0 in tensor.shape:
    return np.empty(tensor.shape, tensor.dtype)
  itemsize = tensor.dtype.itemsize
  sizes_and_strides = zip(tensor.shape, tensor.strides, strict=True)
  # The stride of an axis of length one is not used and may be anything.
  strides = [s * itemsize * (n > 1) for n, s in sizes_and_strides]
  return np.ndarray(
    tensor.shape,
    tensor.dtype,
    buffer=storage(tensor.storage),
    offset=tensor.offset * itemsize,
    strides=strides,
  )
