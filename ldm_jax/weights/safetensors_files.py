"""safetensors files: a length, a JSON header, then the tensors.

The format is that of huggingface/safetensors' README. Its library (0.8) is not
used: its numpy interface has no 8-bit floats, keeps the last of two tensors of
one name, and writes the data of transposed arrays in the wrong order.
"""

import json
import math
import os
from collections.abc import Mapping

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.files.atomic_writes import new_file, replace_file
from ldm_jax.files.strict_json import parse_json
from ldm_jax.weights.file_types import START_LENGTH, explain
from ldm_jax.weights.lazy_tensors import LazyTensor
from ldm_jax.weights.mmap_files import (
  DTYPES,
  as_array,
  error_context,
  is_count,
  map_file,
  open_weights,
  release_pages,
)

MAX_HEADER = 100_000_000  # safetensors/src/tensor.rs: MAX_HEADER_SIZE
METADATA = "__metadata__"
FORMAT = {"format": "pt"}  # transformers reads no file without it

# In the order in which the safetensors library sorts them.
DTYPE_NAMES = {
  "BOOL": "bool",
  "U8": "uint8",
  "I8": "int8",
  "F8_E5M2": "float8_e5m2",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E8M0": "float8_e8m0fnu",
  "F8_E4M3FNUZ": "float8_e4m3fnuz",
  "F8_E5M2FNUZ": "float8_e5m2fnuz",
  "I16": "int16",
  "U16": "uint16",
  "F16": "float16",
  "BF16": "bfloat16",
  "I32": "int32",
  "U32": "uint32",
  "F32": "float32",
  "C64": "complex64",
  "F64": "float64",
  "I64": "int64",
  "U64": "uint64",
}
FORMAT_NAMES = {name: format_name for format_name, name in DTYPE_NAMES.items()}
RANKS = {name: -rank for rank, name in enumerate(DTYPE_NAMES.values())}


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The tensors of a file by name, memory-mapped and read-only.

  Raises:
    WeightsError: the file is truncated, its header is malformed or repeats a
      name, a dtype is unknown, or the tensors do not fill the file exactly.
  """
  with open_weights(path) as file:
    header, data = _split(map_file(file))
    header.pop(METADATA, None)
    offsets = {name: _offsets(name, entry) for name, entry in header.items()}
    _check_offsets(offsets, data.size)
    return {
      name: _tensor(name, data[start:end], header[name])
      for name, (start, end) in offsets.items()
    }


def metadata(path: str | os.PathLike) -> dict[str, str]:
  """The __metadata__ of a file; {} if it has none.

  Raises:
    WeightsError: as `read_safetensors`, as far as the header goes.
  """
  with open_weights(path) as file:
    header, _ = _split(map_file(file))
    return header.get(METADATA, {})


def write_safetensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray | LazyTensor],
  *,
  metadata: Mapping[str, str] = FORMAT,
  is_new: bool = False,
):
  """Writes a file, which appears when it is complete.

  The bytes equal those of the safetensors library: sorted by the width of the
  dtype, the widest first, which aligns them, and then by name.

  Args:
    is_new: whether `path` must not exist, rather than be replaced.

  Raises:
    WeightsError: the format lacks a dtype, or a name is not allowed.
    FileExistsError: it exists, and `is_new`.
  """
  with error_context(path):
    for name, tensor in tensors.items():
      _check_writable(name, tensor.dtype.name)
    names = sorted(tensors, key=lambda n: (RANKS[tensors[n].dtype.name], n))
    header = _header({name: tensors[name] for name in names}, metadata)
  with (new_file if is_new else replace_file)(path) as file:
    file.write(len(header).to_bytes(8, "little") + header)
    for name in names:
      array = np.asarray(tensors[name])
      little = DTYPES[array.dtype.name]
      array = array.astype(little, order="C", copy=False)
      file.write(array.reshape(-1).view(np.uint8).data)
      release_pages(array)


def _split(data):
  """(header, bytes after it)."""
  length = int.from_bytes(data[:8].tobytes(), "little")
  if data.size < 8 or length > data.size - 8:
    advice = explain(data[:START_LENGTH].tobytes())
    raise WeightsError(
      advice
      or "truncated or not a safetensors file: its header of "
      f"{length} bytes is longer than the file of {data.size}"
    )
  if length > MAX_HEADER:
    raise WeightsError(f"a header of {length} bytes; at most {MAX_HEADER}")
  text = data[8 : 8 + length].tobytes()
  header = parse_json(text, WeightsError) if text.startswith(b"{") else None
  if not isinstance(header, dict):
    raise WeightsError(
      "not a safetensors file: its header is not a JSON object"
    )
  metadata = header.get(METADATA, {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise WeightsError(f"its {METADATA} is not a dictionary of strings")
  return header, data[8 + length :]


def _offsets(name, entry):
  """Begin and end of a tensor in the bytes after the header."""
  match entry:
    case {"dtype": str(), "shape": list(), "data_offsets": [start, end]} if (
      len(entry) == 3 and is_count(start) and is_count(end) and start <= end
    ):
      return start, end
  raise WeightsError(
    f"tensor {name[:200]!r} has a malformed entry; expected a dtype, a shape "
    "and two data_offsets, and nothing else"
  )


def _check_offsets(offsets, size):
  """Checks that the tensors fill all bytes, one after another."""
  before = 0
  for name, (start, end) in sorted(offsets.items(), key=lambda item: item[1]):
    if start != before or end > size:
      raise WeightsError(
        f"tensor {name!r} lies at {start} to {end} of {size} bytes, and the "
        f"one before it ends at {before}; the file is truncated or malformed"
      )
    before = end
  if before != size:
    raise WeightsError(f"its tensors end at {before} of {size} bytes")


def _tensor(name, data, entry):
  if entry["dtype"] not in DTYPE_NAMES:
    raise WeightsError(
      f"tensor {name!r} has the dtype {entry['dtype'][:20]!r}; known are "
      f"{', '.join(DTYPE_NAMES)}"
    )
  try:
    return as_array(data, DTYPES[DTYPE_NAMES[entry["dtype"]]], entry["shape"])
  except WeightsError as error:
    raise WeightsError(f"tensor {name!r}: {error}") from error


def _check_writable(name, dtype):
  if not isinstance(name, str) or name == METADATA:
    raise WeightsError(f"a tensor cannot be named {name!r}")
  if dtype not in FORMAT_NAMES:
    raise WeightsError(
      f"tensor {name!r} is {dtype}, which safetensors cannot hold; it holds "
      f"{', '.join(FORMAT_NAMES)}"
    )


def _header(tensors, metadata):
  """The JSON of tensors in this order, padded to a multiple of 8 bytes."""
  if not all(isinstance(value, str) for value in metadata.values()):
    raise WeightsError(f"metadata can only be strings; got {dict(metadata)}")
  header, start = {METADATA: dict(metadata)} if metadata else {}, 0
  for name, tensor in tensors.items():
    end = start + math.prod(tensor.shape) * tensor.dtype.itemsize
    header[name] = {
      "dtype": FORMAT_NAMES[tensor.dtype.name],
      "shape": list(tensor.shape),
      "data_offsets": [start, end],
    }
    start = end
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  return text + b" " * (-len(text) % 8)
