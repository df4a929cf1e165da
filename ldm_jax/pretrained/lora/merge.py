"""LoRA: changes of low rank, merged into a model's matrices."""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pretrained.lora.matrix_names import Pair, pairs
from ldm_jax.weights import mmap_files
from ldm_jax.weights.file_types import SAFETENSORS, START_LENGTH, file_type
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.naming.layouts import LAYOUTS
from ldm_jax.weights.safetensors_files import metadata
from ldm_jax.weights.strict_json import parse_json

_WORDS = "lora_adapter_metadata"  # diffusers/loaders/lora_base.py
_PEFT = "adapter_model", "adapter_config.json"  # what peft's own folders hold


def merge_lora(
  opened: LoadedModel, path: str | os.PathLike, *, scale: float = 1.0
) -> LoadedModel:
  """W + scale (alpha / r) B A for each pair of a file  (Hu et al. 2021, 4.1).

  For files of kohya's form, with the names of diffusers or of Stability's sgm,
  of peft's, and of diffusers' older ones; convolutions too. Where neither a
  tensor nor the metadata tells alpha, it is r. Products and sums are made in
  float32 on the host. Parameters keep their formats and places; those that the
  file does not name are shared with the model that was given.

  Raises:
    ValueError: the scale is not finite.
    WeightsError: the file is unreadable, a tensor of it fits nothing in the
      model, or it holds another kind of adapter.
  """
  if not math.isfinite(scale):
    raise ValueError(f"the scale of a LoRA must be finite, got {scale}")
  tensors, told = dict(read_tensors(path)), _told(path)
  params = {
    "unet": opened.params.unet,
    "conditioners": opened.params.conditioners,
  }
  with mmap_files.error_context(path):
    for pair in pairs(tensors, opened):
      leaf = take(params, pair.target.path)
      # float32: in bfloat16 most of so small a change would be lost.
      wide = np.asarray(leaf).astype(np.float32)
      wide = wide + np.float32(scale * _factor(pair, told)) * _product(pair)
      params = put(params, pair.target.path, placed(wide, leaf))
  return dataclasses.replace(opened, params=opened.params.replace(**params))


def take(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
  """What lies at a path."""
  for name in path:
    tree = tree[name]
  return tree


def put(tree: Mapping[str, Any], path: Sequence[str], leaf: Any) -> Any:
  """The tree with another leaf at a path; the rest is shared."""
  name, *rest = path
  return {**tree, name: put(tree[name], rest, leaf) if rest else leaf}


def placed(array: np.ndarray, leaf: Any) -> Any:
  """The array in the format of a leaf, and where that lies."""
  array = array.astype(leaf.dtype)
  if not isinstance(leaf, jax.Array):
    return array
  # What was put nowhere in particular may still join any mesh.
  if not leaf.committed:
    return jnp.asarray(array)
  return jax.device_put(array, leaf.sharding)


def is_safetensors(path: str | os.PathLike) -> bool:
  """Whether a file is of that format, by its first bytes.

  Raises:
    WeightsError: it cannot be read.
  """
  with mmap_files.open_weights(path) as file:
    return file_type(file.read(START_LENGTH)) == SAFETENSORS


def _product(pair: Pair) -> np.ndarray:
  """B A in our layout; of a convolution A holds the window, B is 1 x 1."""
  row = pair.target.row
  down, up = (x.astype(np.float32) for x in (pair.down, pair.up))
  rank = len(down)
  product = up.reshape(-1, rank) @ down.reshape(rank, -1)
  return LAYOUTS[row.layout].from_foreign(product.reshape(row.foreign_shape()))


def _factor(pair: Pair, told: Mapping[str, Any]) -> float:
  """alpha / r, or alpha / sqrt(r) where that is told  (Kalajdzievski 2023).

  Raises:
    WeightsError: alpha is no finite number.
  """
  rank = len(pair.down)
  alpha, power = pair.alpha, 1.0
  if alpha is None:
    # What is told of a network stands behind its name ("unet.lora_alpha"), or
    # alone where there is but one network.
    network = pair.module.partition(".")[0]
    get = lambda key: told.get(f"{network}.{key}", told.get(key))
    alpha = _told_alpha(pair.module, get("alpha_pattern"), get("lora_alpha"))
    power = 0.5 if get("use_rslora") else 1.0
  if alpha is None:
    return 1.0
  if not isinstance(alpha, int | float) or not math.isfinite(alpha):
    raise WeightsError(
      f"alpha of {pair.module} is {alpha!r}; a finite number is needed"
    )
  return alpha / rank**power


def _told_alpha(module: str, patterns: Any, alpha: Any) -> Any:
  """The module's own alpha if peft's alpha_pattern has one, or that of all.

  Raises:
    WeightsError: a key is a regular expression, which peft allows, or there are
      no keys.
  """
  if not isinstance(patterns, dict | None):
    raise WeightsError(f"its alpha_pattern is a {type(patterns).__name__}")
  for pattern, value in (patterns or {}).items():
    name = pattern.removeprefix("^")
    if not re.fullmatch(r"[\w.]+", name):
      raise WeightsError(
        f"its alpha_pattern has {pattern!r}; needed are names of modules"
      )
    if f".{module}".endswith(f".{name}"):
      return value
  return alpha


def _told(path: str | os.PathLike) -> dict[str, Any]:
  """What peft's config says, in the file's metadata or in a file beside it.

  Raises:
    WeightsError: it is malformed.
  """
  path = pathlib.Path(path)
  stem, beside = _PEFT
  if path.stem == stem and (path.parent / beside).is_file():
    text = (path.parent / beside).read_bytes()
  else:
    words = metadata(path) if is_safetensors(path) else {}
    text = words.get(_WORDS, "{}").encode(errors="replace")
  with mmap_files.error_context(path):
    told = parse_json(text)
    if not isinstance(told, dict):
      raise WeightsError("what it says of its LoRA is no JSON object")
  return told
