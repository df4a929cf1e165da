"""What may stand in a torch pickle: storages, tensors and a few calls."""

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ldm_jax.weights.errors import WeightsError

MAX_RANK = 32

STORAGES = {
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "torch.DoubleStorage": np.dtype("<f8"),
  "torch.LongStorage": np.dtype("<i8"),
  "torch.IntStorage": np.dtype("<i4"),
  "torch.ShortStorage": np.dtype("<i2"),
  "torch.CharStorage": np.dtype("i1"),
  "torch.ByteStorage": np.dtype("u1"),
  "torch.BoolStorage": np.dtype("?"),
}


class Global(NamedTuple):
  """The name of something that Python could import; nobody will."""

  name: str


class Storage(NamedTuple):
  """A run of values that lies elsewhere in the file, under `key`."""

  key: str
  dtype: np.dtype
  count: int


class Tensor(NamedTuple):
  """A strided window on a storage, known to lie within it."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass
class Parameter:
  """A torch Parameter; torch before 0.4 fills it after making it."""

  data: Any = None


def set_items(target, keys, values):
  """target[key] = value for a dictionary, and for nothing else.

  Raises:
    WeightsError: it is another thing, or a key is no plain value.
  """
  if not isinstance(target, dict):
    raise WeightsError("malformed pickle: it sets items of no dictionary")
  for key, value in zip(keys, values, strict=True):
    # Hashing a deeply nested tuple would exhaust the C stack.
    if not isinstance(key, (str, int, float, type(None))):
      raise WeightsError(f"a dictionary key is a {type(key).__name__}")
    target[key] = value


def _ordered_dict(pairs=(), *_):
  """Python 3 calls it without arguments, Python 2 with a list of pairs."""
  made = collections.OrderedDict()
  for pair in pairs if isinstance(pairs, list) else ():
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
      raise WeightsError("malformed OrderedDict: its items are not pairs")
    set_items(made, pair[:1], pair[1:])
  return made


def _size(sizes=(), *_):
  return sizes


def _parameter(data=None, *_):
  return Parameter(data)


def _tensor(storage=None, offset=None, shape=None, strides=None, *rest):
  """A tensor that lies within its storage and is no larger than it.

  `rest` is requires_grad, hooks and, since torch 2, bits such as "conjugated".
  """
  if not isinstance(storage, Storage) or not _is_count(offset):
    raise WeightsError("malformed tensor: it has no storage or no offset")
  for sizes in (shape, strides):
    if not isinstance(sizes, tuple) or not all(map(_is_count, sizes)):
      raise WeightsError(f"malformed tensor on storage {storage.key}")
  if len(shape) != len(strides) or len(shape) > MAX_RANK:
    raise WeightsError(
      f"malformed tensor on storage {storage.key}: rank {len(shape)} with "
      f"{len(strides)} strides, at most {MAX_RANK}"
    )
  if any(rest[2:]):
    raise WeightsError("a tensor has lazy bits; a plain tensor is needed")
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  size = math.prod(shape)
  # numpy multiplies the axes of an empty array too, and must not overflow.
  is_huge = not size and math.prod(n for n in shape if n) >= 2**48
  if is_huge or (size and (last >= storage.count or size > storage.count)):
    raise WeightsError(
      f"a tensor of shape {shape} and strides {strides} at {offset} reads past "
      f"its storage {storage.key}, which holds {storage.count} values"
    )
  return Tensor(storage, offset, shape, strides)


def _is_count(number):
  return type(number) is int and 0 <= number < 2**48


def read_storage(identity: Any) -> Storage:
  """A storage by its persistent id ("storage", kind, key, device, count)."""
  match identity:
    case ("storage", Global(kind), str(key), _, int(count), *view) if (
      kind in STORAGES and _is_count(count) and key.isascii() and key.isdigit()
    ):
      storage = Storage(key, STORAGES[kind], count)
    case _:
      raise WeightsError(
        "malformed storage; needed are a kind of storage, a key of digits and "
        "a number of values"
      )
  if any(part is not None for part in view):
    raise WeightsError(
      f"storage {key} is a view of another one; save it again with torch >= 0.4"
    )
  return storage


def set_state(target: Any, state: Any):
  """Object state: ignored, but for the data of Parameters before torch 0.4."""
  if not isinstance(target, (Parameter, collections.OrderedDict)):
    raise WeightsError(f"refused to set the state of a {type(target).__name__}")
  is_old = isinstance(state, tuple) and len(state) == 5
  if isinstance(target, Parameter) and is_old:
    target.data = state[0]


CALLS = {
  "collections.OrderedDict": _ordered_dict,
  "torch.Size": _size,
  "torch._utils._rebuild_tensor": _tensor,  # torchvision's vgg16-397923af.pth
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_parameter": _parameter,
  "torch.nn.parameter.Parameter": _parameter,  # before torch 0.4
}
