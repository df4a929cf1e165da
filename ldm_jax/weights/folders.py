"""Weights in folders of diffusers and transformers: one file, or shards."""

import collections
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.strict_json import parse_json
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.lazy_tensors import LazyTensor
from ldm_jax.weights.mmap_files import map_file, open_weights
from ldm_jax.weights.safetensors_files import write_safetensors

# File names of the libraries, with those of their former Flax models
# (diffusers/utils/constants.py, transformers/utils/__init__.py).
DIFFUSERS = ("diffusion_pytorch_model", "diffusion_flax_model")
TRANSFORMERS = ("model", "pytorch_model", "flax_model")

SUFFIXES = (".safetensors", ".bin", ".msgpack")  # in order of preference
MAX_INDEX = 64 * 2**20


class WeightFiles(NamedTuple):
  """The files of one network.

  Attributes:
    shard_of: file name by tensor, from the index; None for a single file.
  """

  files: tuple[pathlib.Path, ...]
  shard_of: Mapping[str, str] | None = None


def find_weights(
  folder: str | os.PathLike, stems: Sequence[str], *, variant: str | None = None
) -> WeightFiles:
  """The preferred weights in a folder: safetensors, else torch's, else Flax's.

  Of each kind a single file is preferred to an index with its shards.

  Args:
    stems: names of the files without suffix, such as DIFFUSERS or TRANSFORMERS.
    variant: part of the file names, such as "fp16"; None for files without one.

  Raises:
    WeightsError: there are none of that variant, or their index is malformed,
      names a file outside the folder or one that is missing.
  """
  folder = pathlib.Path(folder)
  for suffix in SUFFIXES:
    for stem in stems:
      single = folder / f"{_with_variant(stem, variant)}{suffix}"
      if single.exists():
        return WeightFiles((single,))
    for stem in stems:
      for index in _index_names(stem, suffix, variant):
        if (folder / index).exists():
          return _read_index(folder / index)
  wanted = f"of variant {variant!r}" if variant else "without a variant"
  raise WeightsError(
    f"{folder}: no weights {wanted}, named {' or '.join(stems)}; there are "
    f"{_listing(folder)}"
  )


def read_folder(
  folder: str | os.PathLike, stems: Sequence[str], *, variant: str | None = None
) -> Mapping[str, np.ndarray]:
  """The tensors of `find_weights`, of all shards, read as by `read_tensors`.

  Raises:
    WeightsError: as `find_weights` and `read_tensors`; or a tensor is not in
      the shard that the index names, or it is in two shards.
  """
  found = find_weights(folder, stems, variant=variant)
  shards = {file.name: read_tensors(file) for file in found.files}
  for name, file in (found.shard_of or {}).items():
    if name not in shards[file]:
      raise WeightsError(
        f"{pathlib.Path(folder) / file}: the index lists tensor {name!r}, "
        "which is not there"
      )
  files_of = collections.defaultdict(list)
  for file, tensors in shards.items():
    for name in tensors:
      files_of[name].append(file)
  for name, files in files_of.items():
    if len(files) > 1:
      raise WeightsError(
        f"{folder}: tensor {name!r} is in {' and in '.join(files)}"
      )
  return collections.ChainMap(*shards.values())


def write_sharded(
  folder: str | os.PathLike,
  stem: str,
  *,
  tensors: Mapping[str, np.ndarray | LazyTensor],
  max_bytes: int,
  variant: str | None = None,
) -> tuple[pathlib.Path, ...]:
  """Writes STEM[.VARIANT].safetensors, or shards of at most `max_bytes` each.

  Shards and index are named as by diffusers and transformers. A tensor larger
  than `max_bytes` has its own shard. An earlier save of the same stem and
  variant is replaced. Returns the written files, the index last.

  Raises:
    WeightsError: as `write_safetensors`.
    ValueError: max_bytes is not positive.
  """
  if max_bytes < 1:
    raise ValueError(f"shards of {max_bytes} bytes; try max_bytes=5 * 2**30")
  folder, base = pathlib.Path(folder), _with_variant(stem, variant)
  folder.mkdir(parents=True, exist_ok=True)
  shards = _split(tensors, max_bytes)
  if len(shards) == 1:
    files = {f"{base}.safetensors": shards[0]}
  else:
    files = {
      f"{base}-{n:05}-of-{len(shards):05}.safetensors": names
      for n, names in enumerate(shards, 1)
    }
  for file, names in files.items():
    write_safetensors(folder / file, {name: tensors[name] for name in names})
  written = list(files)
  if len(shards) > 1:
    written.append(_index_names(stem, ".safetensors", variant)[0])
    _write_index(folder / written[-1], files, tensors)
  _remove_earlier(folder, stem, variant, written)
  return tuple(folder / file for file in written)


def _with_variant(stem, variant):
  return f"{stem}.{variant}" if variant else stem


def _index_names(stem, suffix, variant):
  """Possible names of the index; the first is what both libraries write."""
  if not variant:
    return [f"{stem}{suffix}.index.json"]
  return [
    f"{stem}{suffix}.index.{variant}.json",
    f"{stem}.{variant}{suffix}.index.json",
  ]


def _read_index(path):
  """Reads {"weight_map": {tensor: file}}; all files are in this folder."""
  with open_weights(path) as file:
    text = map_file(file)
    if text.size > MAX_INDEX:
      raise WeightsError(f"an index of {text.size} bytes; at most {MAX_INDEX}")
    index = parse_json(text.tobytes(), WeightsError)
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    is_map = isinstance(shard_of, dict) and shard_of
    if not is_map or not all(isinstance(f, str) for f in shard_of.values()):
      raise WeightsError("it has no weight_map, from tensors to files")
    for shard in dict.fromkeys(shard_of.values()):
      if shard in ("", ".", "..") or "/" in shard or "\\" in shard:
        raise WeightsError(f"it names {shard[:200]!r}, outside the folder")
      if not (path.parent / shard).is_file():
        raise WeightsError(
          f"its shard {shard[:200]!r} is missing; download it again"
        )
  files = sorted({path.parent / shard for shard in shard_of.values()})
  return WeightFiles(tuple(files), shard_of)


def _listing(folder):
  if not folder.is_dir():
    raise WeightsError(f"{folder}: no such folder")
  names = sorted(path.name for path in folder.iterdir())
  weights = [n for n in names if n.endswith((*SUFFIXES, ".json"))]
  return ", ".join(weights[:30]) or f"{len(names)} files of other kinds"


def _split(tensors, max_bytes):
  """Names in order, in lists whose tensors fit into one shard."""
  shards, free = [[]], max_bytes
  for name, tensor in tensors.items():
    if tensor.nbytes > free and shards[-1]:
      shards.append([])
      free = max_bytes
    shards[-1].append(name)
    free -= tensor.nbytes
  return shards


def _write_index(path, files, tensors):
  index = {
    "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
    "weight_map": {n: file for file, names in files.items() for n in names},
  }
  with replace_file(path) as file:
    text = json.dumps(index, indent=2, sort_keys=True)
    file.write(f"{text}\n".encode())


def _remove_earlier(folder, stem, variant, written):
  """Deletes files of an earlier save, which would be read with this one."""
  number = r"-\d{5}-of-\d{5}"
  earlier = [
    rf"{re.escape(_with_variant(stem, variant))}({number})?\.safetensors",
    *map(re.escape, _index_names(stem, ".safetensors", variant)),
  ]
  if variant:
    end = re.escape(f".{variant}.safetensors")
    earlier.append(f"{re.escape(stem)}{number}{end}")
  for path in folder.iterdir():
    is_earlier = any(re.fullmatch(name, path.name) for name in earlier)
    if is_earlier and path.name not in written:
      path.unlink()
