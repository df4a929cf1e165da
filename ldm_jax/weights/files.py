"""Reads weight files of any type, recognised by their content."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from ldm_jax.weights.file_types import (
  FLAX,
  SAFETENSORS,
  START_LENGTH,
  TORCH_LEGACY,
  TORCH_ZIP,
  file_type,
  raise_wrong_type,
)
from ldm_jax.weights.flax_files import read_flax
from ldm_jax.weights.mmap_files import open_weights
from ldm_jax.weights.safetensors_files import metadata, read_safetensors
from ldm_jax.weights.torch.torch_files import (
  read_pickled,
  read_step,
  read_torch,
)

__all__ = [
  "read_global_step",
  "read_metadata",
  "read_pickled",
  "read_tensors",
  "read_torch",
]

READERS = {
  SAFETENSORS: read_safetensors,
  TORCH_ZIP: read_torch,
  TORCH_LEGACY: read_torch,
  FLAX: read_flax,
}
# For a damaged start: the reader of that type gives the best error.
SUFFIXES = {".safetensors": SAFETENSORS, ".msgpack": FLAX}


def read_tensors(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
  """The tensors of a file by name: safetensors, torch or Flax msgpack.

  The type is that of the first bytes, whatever the suffix. Arrays are views of
  the memory-mapped file; only msgpack is read at once. Nested names of Flax are
  joined by "/".

  Raises:
    WeightsError: one line; see `read_safetensors`, `read_torch`, `read_flax`.
  """
  return READERS[_kind(path)](path)


def read_global_step(path: str | os.PathLike) -> int | None:
  """ "global_step" of a torch checkpoint; None if it has none.

  Raises:
    WeightsError: as `read_tensors`.
  """
  is_torch = READERS[_kind(path)] is read_torch
  return read_step(path) if is_torch else None


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """The metadata of a safetensors file; {} of any other.

  Raises:
    WeightsError: as `read_tensors`.
  """
  return metadata(path) if _kind(path) == SAFETENSORS else {}


def _kind(path):
  with open_weights(path) as file:
    size, start = os.fstat(file.fileno()).st_size, file.read(START_LENGTH)
    kind = file_type(start) or SUFFIXES.get(pathlib.Path(path).suffix)
    return kind or raise_wrong_type(start, size, "safetensors, torch or Flax")
