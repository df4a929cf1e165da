"""The objects and calls allowed in a torch pickle: storages and tensors."""

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.mmap_files import DTYPES, check_shape, is_count
from ldm_jax.weights.torch.numpy_arrays import (
  Encoded,
  Format,
  NumpyArray,
  blank,
  encoded,
  format_of,
)
from ldm_jax.weights.torch.stub_objects import StubObject

UNTYPED = "torch.storage.UntypedStorage"  # bytes; each tensor has a dtype
STORAGES = {
  "torch.FloatStorage": DTYPES["float32"],
  "torch.HalfStorage": DTYPES["float16"],
  "torch.BFloat16Storage": DTYPES["bfloat16"],
  "torch.DoubleStorage": DTYPES["float64"],
  "torch.LongStorage": DTYPES["int64"],
  "torch.IntStorage": DTYPES["int32"],
  "torch.ShortStorage": DTYPES["int16"],
  "torch.CharStorage": DTYPES["int8"],
  "torch.ByteStorage": DTYPES["uint8"],
  "torch.BoolStorage": DTYPES["bool"],
  "torch.ComplexFloatStorage": DTYPES["complex64"],
  "torch.ComplexDoubleStorage": DTYPES["complex128"],
  UNTYPED: DTYPES["uint8"],
}
TORCH_DTYPES = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}


class Global(NamedTuple):
  """A name that pickle would import; here it is only compared."""

  name: str


class Storage(NamedTuple):
  """`count` values stored in the file under `key`."""

  key: str
  dtype: np.dtype
  count: int

  @property
  def size(self) -> int:
    """Bytes."""
    return self.count * self.dtype.itemsize


class Tensor(NamedTuple):
  """A strided view of a storage, checked to lie within it."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass
class Parameter:
  """A torch Parameter; torch before 0.4 sets its data by its state."""

  data: Any = None


@dataclasses.dataclass
class ParameterDict:
  """torch's dictionary of parameters, as in files of textual inversion."""

  items: dict = dataclasses.field(default_factory=dict)


def set_items(target, keys, values):
  """target[key] = value for a dictionary; stubs drop it.

  Raises:
    WeightsError: the target is neither, or a key is not a plain value.
  """
  if isinstance(target, StubObject):
    return
  if not isinstance(target, dict):
    raise WeightsError("malformed pickle: it sets items of no dictionary")
  for key, value in zip(keys, values, strict=True):
    # Hashing a deeply nested tuple would exhaust the C stack. Lightning's
    # dictionary of callbacks had their classes as keys.
    if not isinstance(key, (str, int, float, type(None), StubObject, Encoded)):
      raise WeightsError(f"a dictionary key is a {type(key).__name__}")
    target[key] = value


def _ordered_dict(pairs=(), *_):
  """Called without arguments by Python 3, with a list of pairs by Python 2.

  The list is emptied: a file that refers to one list a million times would
  otherwise fill the memory.
  """
  items = collections.OrderedDict()
  if not isinstance(pairs, list):
    return items
  for pair in pairs:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
      raise WeightsError("malformed OrderedDict: its items are not pairs")
    set_items(items, pair[:1], pair[1:])
  pairs.clear()
  return items


def _size(sizes=(), *_):
  return sizes


def _parameter(data=None, *_):
  return Parameter(data)


def _parameter_dict(*_):
  return ParameterDict()


def _tensor(storage=None, offset=None, shape=None, strides=None, *rest):
  """`rest` is requires_grad, hooks and, since torch 2, lazy bits (negated)."""
  if any(rest[2:]):
    raise WeightsError("a tensor has lazy bits; a plain tensor is needed")
  if not isinstance(storage, Storage):
    raise WeightsError("malformed tensor: it has no storage")
  return _checked(Tensor(storage, storage.dtype, offset, shape, strides))


def _tensor_of_dtype(*arguments):
  """A tensor whose dtype has no storage class, such as 8-bit floats.

  Offset and strides count elements of the dtype, the storage counts bytes.
  """
  storage, offset, shape, strides, _, _, dtype, *rest = (
    *arguments,
    *[None] * (7 - len(arguments)),
  )
  if any(rest):
    raise WeightsError("a tensor has lazy bits; a plain tensor is needed")
  if not isinstance(storage, Storage) or storage.dtype != DTYPES["uint8"]:
    raise WeightsError("malformed tensor: it has no storage of bytes")
  if not isinstance(dtype, Global) or dtype.name not in TORCH_DTYPES:
    raise WeightsError("malformed tensor: it has no dtype")
  dtype = TORCH_DTYPES[dtype.name]
  return _checked(Tensor(storage, dtype, offset, shape, strides))


def _checked(tensor):
  """The tensor, checked to lie within its storage and not to exceed it."""
  storage, dtype, offset, shape, strides = tensor
  if not is_count(offset):
    raise WeightsError("malformed tensor: it has no offset")
  try:
    check_shape(shape)
  except WeightsError as error:
    raise WeightsError(
      f"malformed tensor on storage {storage.key}: {error}"
    ) from error
  is_tuple = isinstance(strides, tuple) and len(strides) == len(shape)
  if not is_tuple or not all(map(is_count, strides)):
    raise WeightsError(
      f"malformed tensor on storage {storage.key}: its strides do not fit its "
      f"shape {shape}"
    )
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  size, count = math.prod(shape), storage.size // dtype.itemsize
  if size and (last >= count or size > count):
    raise WeightsError(
      f"a tensor of shape {shape} and strides {strides} at {offset} reads past "
      f"its storage {storage.key}, which holds {count} values"
    )
  return tensor


def read_storage(identity: Any) -> Storage:
  """A storage by its persistent id ("storage", kind, key, device, count)."""
  if isinstance(identity, tuple) and len(identity) > 6:
    identity = None
  match identity:
    case ("storage", Global(kind), str(key), _, int(count), *_) if (
      kind in STORAGES and is_count(count) and key.isascii() and key.isdigit()
    ):
      storage = Storage(key, STORAGES[kind], count)
    case _:
      raise WeightsError(
        "malformed storage; expected a kind of storage, a key of digits and "
        "a number of values"
      )
  if any(part is not None for part in identity[5:]):
    raise WeightsError(
      f"storage {key} is a view of another one; save it again with torch >= 0.4"
    )
  return storage


def set_state(target: Any, state: Any):
  """Sets the state of an object; only parameters and arrays keep it.

  Raises:
    WeightsError: the target has no state.
  """
  match target, state:
    case ParameterDict(), {"_parameters": dict(items)}:
      target.items = items
    case Parameter(), (data, _, _, _, _):  # torch before 0.4
      target.data = data
    case NumpyArray(), _:
      target.state = state
    case Format(), (_, order, *_):
      target.order = order
    case ((Parameter() | collections.OrderedDict() | StubObject()), _):
      pass
    case _:
      raise WeightsError(
        f"refused to set the state of a {type(target).__name__}"
      )


CALLS = {
  "collections.OrderedDict": _ordered_dict,
  "torch.Size": _size,
  "torch._utils._rebuild_tensor": _tensor,  # torchvision's vgg16-397923af.pth
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
  "torch._utils._rebuild_parameter": _parameter,
  "torch.nn.parameter.Parameter": _parameter,  # before torch 0.4
  "torch.nn.modules.container.ParameterDict": _parameter_dict,
  "_codecs.encode": encoded,
  "numpy.dtype": format_of,
  "numpy.core.multiarray._reconstruct": blank,
  "numpy._core.multiarray._reconstruct": blank,  # since numpy 2
}
