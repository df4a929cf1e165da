"""DINOv2's image encoder, from transformers' folders and its authors' files."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.networks import build, kind_of, load
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.naming.convert import convert, shapes
from ldm_jax.weights.naming.parameter_names import name_table

# What to look for, since nothing is downloaded.
SOURCE = (
  "a folder of transformers' Dinov2Model, such as facebook/dinov2-large "
  "(model.safetensors, 1.2 GB), or facebookresearch's "
  "dinov2_vitl14_pretrain.pth (1.2 GB)"
)

_HEAD_WIDTH = 64  # of all four sizes
_OFFSET = 0.1  # of the authors' interpolation without registers


def open_dinov2(path: str) -> tuple[DinoV2, dict[str, Any]]:
  """The encoder of a folder or a file, and its variables.

  Of a folder positions are interpolated as transformers does, of a file as its
  authors do.

  Raises:
    ConfigError: there is no such folder or file, or it is of another network.
    WeightsError: its weights are missing, malformed or of another network.
  """
  if os.path.isdir(path):
    found = open_network(path)
    if kind_of(found.config) != "dinov2":
      raise ConfigError(
        f"{path} holds a {type(build(found.config)).__name__}; expected "
        f"{SOURCE}"
      )
    return load(found)
  if not os.path.isfile(path):
    raise ConfigError(f"there is no file {path!r}; expected {SOURCE}")
  tensors = read_tensors(path)
  module = _module_of(path, tensors)
  size = module.size
  dummy = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  abstract = jax.eval_shape(module.init, jax.random.key(0), dummy)
  table = name_table("dinov2", "compvis", shapes(abstract["params"]))
  place = lambda _, array: jnp.asarray(array, jnp.float32)
  return module, {"params": convert(table, tensors, place=place)}


def _module_of(path: str, tensors: Mapping[str, np.ndarray]) -> DinoV2:
  """The encoder that has a file's tensors."""
  names = ("cls_token", "pos_embed", "patch_embed.proj.weight")
  missing = [name for name in names if name not in tensors]
  blocks = {
    int(m[1]) for n in tensors if (m := re.match(r"blocks\.(\d+)\.", n))
  }
  gated, plain = "blocks.0.mlp.w3.weight", "blocks.0.mlp.fc2.weight"
  is_gated = gated in tensors
  if missing or not (is_gated or plain in tensors):
    raise WeightsError(f"{path} is no file of DINOv2; expected {SOURCE}")
  hidden = np.shape(tensors[gated if is_gated else plain])[-1]
  width, patch = (
    np.shape(tensors["patch_embed.proj.weight"])[axis] for axis in (0, -1)
  )
  registers = np.shape(tensors.get("register_tokens", np.zeros((1, 0))))[1]
  side = math.isqrt(np.shape(tensors["pos_embed"])[1] - 1)
  try:
    return DinoV2(
      side * patch,
      patch,
      width,
      1 + max(blocks),
      max(1, width // _HEAD_WIDTH),
      hidden,
      "swiglu" if is_gated else "mlp",
      registers,
      is_antialiased=registers > 0,
      position_offset=0.0 if registers else _OFFSET,
    )
  except ValueError as error:
    raise WeightsError(f"{path}: {error}") from error
