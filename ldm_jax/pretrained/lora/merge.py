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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.operators.quantized_array import is_quantized
from ldm_jax.pretrained.hub.fetch import local_adapter
from ldm_jax.pretrained.lora.adapter_config import read_configs
from ldm_jax.pretrained.lora.leaves import get_leaf, like_leaf, with_leaf
from ldm_jax.pretrained.lora.parameter_update import Update
from ldm_jax.pretrained.lora.tensor_names import BUNDLE, split_bundle
from ldm_jax.pretrained.lora.updates import read_updates
from ldm_jax.pretrained.textual_inversion import add_inversion
from ldm_jax.weights import mmap_files
from ldm_jax.weights.files import read_tensors


@dataclasses.dataclass(frozen=True)
class LoraWeights:
  """A LoRA file, read for one model.

  Attributes:
    path: of the file.
    updates: one for every parameter that it changes.
    embeddings: textual inversions bundled with it, by their tokens.
  """

  path: str
  updates: tuple[Update, ...]
  embeddings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_lora(loaded: LoadedModel, path: str | os.PathLike) -> LoraWeights:
  """The updates of a LoRA file, for the parameters of a model.

  The file may be in a repository of the hub, see `local_adapter`.

  Reads files of kohya's form, with the names of diffusers or of Stability's
  sgm, of peft's, ComfyUI's, and of diffusers' older ones. They may hold LoRAs,
  also with Tucker's cores, LoHas, LoKrs, DoRAs, and differences of weights,
  norms and biases; embeddings may be bundled with them. Where neither a tensor
  nor peft's config gives alpha, it is r.

  Raises:
    WeightsError: the file is unreadable, one of its tensors fits nothing in the
      model or is not finite, or it holds another kind of adapter.
  """
  path = local_adapter(path)
  tensors, configs = read_tensors(path), read_configs(path)
  with mmap_files.error_context(path):
    factors, embeddings = split_bundle(tensors)
    is_empty = embeddings and not factors
    updates = [] if is_empty else read_updates(factors, configs, loaded)
  return LoraWeights(str(path), tuple(updates), embeddings)


def apply_loras(
  params: Parameters, loras: Sequence[tuple[LoraWeights, float]]
) -> Parameters:
  """W + scale dW for each LoRA in turn; dW = (alpha / r) B A in the simplest.

  Hu et al. 2021, 4.1; the other kinds are in `changes` and `Magnitude`. At
  scale s a DoRA's matrix is W + s (W' - W), where W' is the one at scale 1.
  Products and sums are made in float32 on the host. Parameters keep their
  number formats and sharding, and those in 8 bits are rounded again; `params`
  itself is not changed, and leaves that no LoRA changes are shared with it.
  Bundled embeddings are `merge_lora`'s.

  Args:
    params: the base parameters of the model that the LoRAs were loaded for.
    loras: (weights, scale); 0 adds nothing, negative scales subtract.

  Raises:
    ConfigError: a scale is not finite.
    NonFiniteWeights: a sum is too large for the parameter's number format.
  """
  trees = {"unet": params.unet, "conditioners": params.conditioners}
  for lora, scale in loras:
    if not math.isfinite(scale):
      raise ConfigError(f"the scale of a LoRA must be finite, got {scale}")
    for update in lora.updates:
      leaf = get_leaf(trees, update.target.path)
      # float32: in bfloat16 most of so small a change would be lost.
      own = np.asarray(leaf.unbox() if is_quantized(leaf) else leaf)
      wide = update.apply(own.astype(np.float32), scale)
      with mmap_files.error_context(lora.path):
        name = f"{update.target.row.foreign_name} at scale {scale:g}"
        changed = like_leaf(wide, leaf, name)
      trees = with_leaf(trees, update.target.path, changed)
  return params.replace(**trees)


def merge_lora(
  loaded: LoadedModel, path: str | os.PathLike, *, scale: float = 1.0
) -> LoadedModel:
  """The model with a LoRA file merged into its parameters.

  Embeddings bundled with it become tokens of the prompts; they have no scale.

  Raises:
    ConfigError: as `apply_loras` and `load_inversion`.
    WeightsError: as `load_lora`.
  """
  lora = load_lora(loaded, path)
  params = apply_loras(loaded.params, [(lora, scale)])
  loaded = dataclasses.replace(loaded, params=params)
  for token, content in lora.embeddings.items():
    with mmap_files.error_context(f"{path}: {BUNDLE}{token}"):
      loaded = add_inversion(loaded, content, token)
  return loaded


def split_scale(text: str) -> tuple[str, float]:
  """(FILE, SCALE) of "FILE:SCALE"; the scale is 1 without a number.

  A colon may be part of the file's name, as that of a drive.
  """
  file, _, number = text.rpartition(":")
  try:
    return file, float(number)
  except ValueError:
    return text, 1.0
