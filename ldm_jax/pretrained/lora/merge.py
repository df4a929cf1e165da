"""Loads LoRA files and adds them to a model's parameters.

`load_lora` and `apply_loras` are for changing LoRAs at run time: keep the base
parameters, and

    lora = load_lora(loaded, "style.safetensors")
    params = apply_loras(loaded.params, [(lora, 0.8)])

Other scales are another call on the same base parameters, and unloading is to
use them again, so nothing is lost to rounding.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.files.strict_json import parse_json
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pretrained.lora.matrix_names import Pair, Target, pairs
from ldm_jax.weights import mmap_files
from ldm_jax.weights.file_types import SAFETENSORS, START_LENGTH, file_type
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.naming.layouts import LAYOUTS
from ldm_jax.weights.safetensors_files import metadata

_METADATA = "lora_adapter_metadata"  # diffusers/loaders/lora_base.py
_PEFT = "adapter_model", "adapter_config.json"  # the files of a peft folder


class LowRankUpdate(NamedTuple):
  """The change of one matrix, factor * up @ down at scale 1.

  Attributes:
    down: float32 [r i ...], from features to the rank.
    up: float32 [o r ...], from the rank to features.
    factor: alpha / r.
  """

  target: Target
  down: np.ndarray
  up: np.ndarray
  factor: float


@dataclasses.dataclass(frozen=True)
class LoraWeights:
  """A LoRA file, read for one model.

  Attributes:
    path: of the file.
    updates: one for every matrix that it changes.
  """

  path: str
  updates: tuple[LowRankUpdate, ...]


def load_lora(loaded: LoadedModel, path: str | os.PathLike) -> LoraWeights:
  """The low-rank updates of a LoRA file, for the matrices of a model.

  Reads files of kohya's form, with the names of diffusers or of Stability's
  sgm, of peft's, and of diffusers' older ones; convolutions too. Where neither
  a tensor nor the metadata gives alpha, it is r.

  Raises:
    WeightsError: the file is unreadable, one of its tensors fits nothing in the
      model, or it holds another kind of adapter.
  """
  tensors, config = dict(read_tensors(path)), _peft_config(path)
  with mmap_files.error_context(path):
    return LoraWeights(
      str(path),
      tuple(
        LowRankUpdate(
          pair.target,
          pair.down.astype(np.float32),
          pair.up.astype(np.float32),
          _factor(pair, config),
        )
        for pair in pairs(tensors, loaded)
      ),
    )


def apply_loras(
  params: Parameters, loras: Sequence[tuple[LoraWeights, float]]
) -> Parameters:
  """W + scale (alpha / r) B A for each LoRA in turn  (Hu et al. 2021, 4.1).

  Products and sums are made in float32 on the host. Parameters keep their
  number formats and sharding; `params` itself is not changed, and leaves that
  no LoRA changes are shared with it.

  Args:
    params: the base parameters of the model that the LoRAs were loaded for.
    loras: (weights, scale); 0 adds nothing, negative scales subtract.

  Raises:
    ConfigError: a scale is not finite.
  """
  trees = {"unet": params.unet, "conditioners": params.conditioners}
  for lora, scale in loras:
    if not math.isfinite(scale):
      raise ConfigError(f"the scale of a LoRA must be finite, got {scale}")
    for update in lora.updates:
      leaf = get_leaf(trees, update.target.path)
      # float32: in bfloat16 most of so small a change would be lost.
      wide = np.asarray(leaf).astype(np.float32)
      wide = wide + np.float32(scale * update.factor) * _product(update)
      trees = with_leaf(trees, update.target.path, like_leaf(wide, leaf))
  return params.replace(**trees)


def merge_lora(
  loaded: LoadedModel, path: str | os.PathLike, *, scale: float = 1.0
) -> LoadedModel:
  """The model with a LoRA file merged into its parameters.

  Raises:
    ConfigError: as `apply_loras`.
    WeightsError: as `load_lora`.
  """
  lora = load_lora(loaded, path)
  params = apply_loras(loaded.params, [(lora, scale)])
  return dataclasses.replace(loaded, params=params)


def split_scale(text: str) -> tuple[str, float]:
  """(FILE, SCALE) of "FILE:SCALE"; the scale is 1 without a number.

  A colon may be part of the file's name, as that of a drive.
  """
  file, _, number = text.rpartition(":")
  try:
    return file, float(number)
  except ValueError:
    return text, 1.0


def get_leaf(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
  """The leaf at a path of a nested dictionary."""
  for name in path:
    tree = tree[name]
  return tree


def with_leaf(tree: Mapping[str, Any], path: Sequence[str], leaf: Any) -> Any:
  """The tree with another leaf at a path; the rest is shared."""
  name, *rest = path
  return {**tree, name: with_leaf(tree[name], rest, leaf) if rest else leaf}


def like_leaf(array: np.ndarray, leaf: Any) -> Any:
  """The array in the number format and with the sharding of a leaf."""
  array = array.astype(leaf.dtype)
  if not isinstance(leaf, jax.Array):
    return array
  # An uncommitted array may still be used with any mesh.
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


def _product(update: LowRankUpdate) -> np.ndarray:
  """B A in our layout; of a convolution A holds the window, B is 1 x 1."""
  row, rank = update.target.row, len(update.down)
  product = update.up.reshape(-1, rank) @ update.down.reshape(rank, -1)
  return LAYOUTS[row.layout].from_foreign(product.reshape(row.foreign_shape()))


def _factor(pair: Pair, config: Mapping[str, Any]) -> float:
  """alpha / r, or alpha / sqrt(r) of a rank-stabilized LoRA.

  The latter is Kalajdzievski 2023.

  Raises:
    WeightsError: alpha is not a finite number.
  """
  rank = len(pair.down)
  alpha, power = pair.alpha, 1.0
  if alpha is None:
    # A key may have its network's name before it ("unet.lora_alpha").
    network = pair.module.partition(".")[0]
    get = lambda key: config.get(f"{network}.{key}", config.get(key))
    alpha = _config_alpha(pair.module, get("alpha_pattern"), get("lora_alpha"))
    power = 0.5 if get("use_rslora") else 1.0
  if alpha is None:
    return 1.0
  if not isinstance(alpha, int | float) or not math.isfinite(alpha):
    raise WeightsError(
      f"alpha of {pair.module} is {alpha!r}; a finite number is needed"
    )
  return alpha / rank**power


def _config_alpha(module: str, patterns: Any, alpha: Any) -> Any:
  """The module's own alpha of peft's alpha_pattern, or that of all modules.

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
        f"its alpha_pattern has {pattern!r}; expected names of modules"
      )
    if f".{module}".endswith(f".{name}"):
      return value
  return alpha


def _peft_config(path: str | os.PathLike) -> dict[str, Any]:
  """peft's config, from the file's metadata or from a file in its folder.

  Raises:
    WeightsError: it is malformed.
  """
  path = pathlib.Path(path)
  stem, config_file = _PEFT
  if path.stem == stem and (path.parent / config_file).is_file():
    text = (path.parent / config_file).read_bytes()
  else:
    stored = metadata(path) if is_safetensors(path) else {}
    text = stored.get(_METADATA, "{}").encode(errors="replace")
  with mmap_files.error_context(path):
    config = parse_json(text, WeightsError)
    if not isinstance(config, dict):
      raise WeightsError("the LoRA's config is not a JSON object")
  return config
