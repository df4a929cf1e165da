"""Flax files (.msgpack): nested dictionaries of arrays.

The format is that of flax/serialization.py: an array is a msgpack extension
that holds, again as msgpack, the shape, numpy's name of the dtype and the data;
an array of over 2^30 bytes is a dictionary of chunks.
"""

import math
import os
from typing import Any

import msgpack
import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.mmap_files import (
  DTYPES,
  MAX_RANK,
  as_array,
  check_shape,
  map_file,
  open_weights,
)

ARRAY, SCALAR = 1, 3  # flax/serialization.py: _MsgpackExtType
CHUNKED = "__msgpack_chunked_array__"

# msgpack allocates as many entries as a dictionary's header announces, on every
# level, before it reads them; no module has more children.
MAX_ENTRIES = 2**16
MAX_DEPTH = 64


def read_flax(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a file; names are the nested keys joined by "/".

  The file is read at once, with one copy of the data. Python numbers become
  arrays of rank 0.

  Raises:
    WeightsError: the file is truncated or malformed, or holds anything but
      nested dictionaries of numbers.
  """
  with open_weights(path) as file:
    data = map_file(file)
    value = _unpack(
      data,
      ext_hook=_extension,
      object_pairs_hook=_unique,
      max_array_len=0,
      max_map_len=min(MAX_ENTRIES, data.size),
    )
    if not isinstance(value, dict):
      raise WeightsError(
        f"it holds a {type(value).__name__}; a dictionary is needed"
      )
    arrays = {}
    _flatten(value, (), arrays)
    return arrays


def _unpack(data, **options):
  """One msgpack value that takes all of the bytes."""
  try:
    return msgpack.unpackb(data, strict_map_key=True, **options)
  except WeightsError:
    raise
  except (ValueError, msgpack.UnpackException, RecursionError) as error:
    raise WeightsError(f"truncated or malformed msgpack ({error})") from error


def _unique(pairs):
  result = {}
  for name, value in pairs:
    if not isinstance(name, str):
      raise WeightsError(f"the key {name[:80]!r} is not a string")
    if name in result:
      raise WeightsError(f"{name[:80]!r} is twice in a dictionary")
    result[name] = value
  return result


def _extension(code, data):
  """An array, as a view of the end of `data`."""
  if code not in (ARRAY, SCALAR):
    raise WeightsError(
      f"it has a msgpack extension of type {code}; expected arrays (1) and "
      "numpy scalars (3)"
    )
  parts = _unpack(
    data,
    ext_hook=_extension_within_array,
    raw=True,
    max_array_len=MAX_RANK,
    max_map_len=0,
  )
  match parts:
    case [list(shape), bytes(name), bytes(content)]:
      pass
    case _:
      raise WeightsError("an array is not a triple of shape, dtype and numbers")
  name = name.decode(errors="replace")
  if name not in DTYPES:
    raise WeightsError(
      f"an array has the dtype {name[:80]!r}; known are {', '.join(DTYPES)}"
    )
  return as_array(np.frombuffer(content, np.uint8), DTYPES[name], shape)


def _extension_within_array(code, _):
  raise WeightsError(f"an array holds a msgpack extension of type {code}")


def _flatten(value: Any, path, arrays):
  """Adds the arrays in `value` to `arrays`, by their paths."""
  if len(path) > MAX_DEPTH:
    raise WeightsError(f"its dictionaries are nested over {MAX_DEPTH} deep")
  name = "/".join(path)
  match value:
    case dict() if CHUNKED in value:
      value = _join(name, value)
    case dict():
      for key, part in value.items():
        _flatten(part, (*path, key), arrays)
      return
    case bool() | int() | float():
      value = np.asarray(value)
    case np.ndarray():
      pass
    case _:
      raise WeightsError(
        f"entry {name!r} is of type {type(value).__name__}; expected nested "
        "dictionaries of arrays"
      )
  if name in arrays:
    raise WeightsError(f"two entries have the name {name!r}")
  arrays[name] = value


def _join(name, value):
  """An array from its flat chunks."""
  try:
    shape, chunks = _listed(value["shape"]), _listed(value["chunks"])
    check_shape(shape)
    array = np.concatenate(chunks)
    is_like = {chunk.dtype for chunk in chunks} == {array.dtype}
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    raise WeightsError(f"array {name!r} has malformed chunks") from error
  if not is_like or array.size != math.prod(shape):
    raise WeightsError(
      f"array {name!r} has chunks of {array.size} numbers; its shape is {shape}"
    )
  return array.reshape(shape)


def _listed(numbered):
  return [numbered[str(index)] for index in range(len(numbered))]
