"""The config.json of diffusers' SD3Transformer2DModel, to and from `MMDiT`."""

from typing import Any

import jax.numpy as jnp

from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.mmdit.mmdit import TIMES, MMDiT
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  Schema,
  class_name,
  is_count,
  read,
  refusal,
)
from ldm_jax.pretrained.configs.unet_reader import Inputs
from ldm_jax.pretrained.configs.value_types import MOST_LAYERS
from ldm_jax.weights.naming import convert

_DUAL = "dual_attention_layers"
SD3 = Schema(
  "SD3Transformer2DModel",
  defaults={
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    _DUAL: (0,),  # the type of its values; a missing key means none
    "qk_norm": None,
  },
  demands={},
)
# Longer tables of positions than any published one: 384 for SD 3.5 medium.
_MOST_PATCHES = 4096


def mmdit(config: Config) -> MMDiT:
  """The network of an SD3Transformer2DModel.

  Raises:
    ConfigError: a key asks for something that `MMDiT` does not support.
  """
  values = _read(config)
  heads, patch = values["num_attention_heads"], values["patch_size"]
  try:
    return MMDiT(
      values["out_channels"],
      heads * values["attention_head_dim"],
      values["num_layers"],
      heads,
      patch,
      values[_DUAL],
      is_qk_normed=values["qk_norm"] is not None,
      max_size=values["pos_embed_max_size"],
      grid=values["sample_size"] // patch,
    )
  except ValueError as error:
    raise ConfigError(f"{SD3.kind}: {error}") from error


def inputs(config: Config) -> Inputs:
  """The inputs of the config's network.

  Raises:
    ConfigError: as `mmdit`.
  """
  values = _read(config)
  return Inputs(
    values["in_channels"],
    values["sample_size"],
    values["joint_attention_dim"],
    values["pooled_projection_dim"],
  )


def _read(config: Config) -> dict[str, Any]:
  """The schema's values, all counts checked."""
  class_name(config, (SD3.kind,))
  listed = config.get(_DUAL)
  if listed is not None and not isinstance(listed, list | tuple):
    raise refusal(SD3.kind, _DUAL, listed, "a list of numbers")
  listed = listed or ()
  values = read({**config, _DUAL: listed}, SD3)
  if values["out_channels"] is None:
    values["out_channels"] = values["in_channels"]
  for key, default in SD3.defaults.items():
    if isinstance(default, int) and not is_count(values[key]):
      raise refusal(SD3.kind, key, values[key], "a number above 0")
  most = {"num_layers": MOST_LAYERS, "pos_embed_max_size": _MOST_PATCHES}
  for key, limit in most.items():
    if values[key] > limit:
      raise refusal(SD3.kind, key, values[key], f"at most {limit}")
  if values["qk_norm"] not in (None, "rms_norm"):
    raise refusal(SD3.kind, "qk_norm", values["qk_norm"], (None, "rms_norm"))
  width = values["num_attention_heads"] * values["attention_head_dim"]
  if values["caption_projection_dim"] != width:
    needed = f"{width}, the width of the network"
    found = values["caption_projection_dim"]
    raise refusal(SD3.kind, "caption_projection_dim", found, needed)
  patch = values["patch_size"]
  if values["sample_size"] % patch:
    needed = f"a multiple of patch_size={patch}"
    raise refusal(SD3.kind, "sample_size", values["sample_size"], needed)
  dual = values[_DUAL]
  if not all(type(i) is int and 0 <= i < values["num_layers"] for i in dual):
    needed = f"numbers below num_layers={values['num_layers']}"
    raise refusal(SD3.kind, _DUAL, dual, needed)
  return values


def init_inputs(config: Config) -> tuple[Any, ...]:
  """(x_t, t, condition) of the config's network, for `init`.

  Raises:
    ConfigError: as `mmdit`.
  """
  found, patch = inputs(config), config.get("patch_size", 2)
  condition = Condition(
    context=jnp.zeros((1, 1, found.context)),
    vector=jnp.zeros((1, found.vector)),
  )
  latents = jnp.zeros((1, patch, patch, found.channels))
  return latents, jnp.zeros((1,)), condition


def mmdit_config(module: MMDiT, params: Any) -> dict[str, Any]:
  """The config.json from which diffusers makes this network.

  Raises:
    ConfigError: diffusers has no class that computes the same.
  """
  needed = {"takes_vector": True, "flow_steps": TIMES}
  for name, value in needed.items():
    if getattr(module, name) != value:
      raise ConfigError(
        f"diffusers' {SD3.kind} has no {name}={getattr(module, name)!r}; "
        f"needed: {value!r}"
      )
  shapes = convert.shapes(params)
  return {
    "_class_name": SD3.kind,
    "_diffusers_version": DIFFUSERS,
    "attention_head_dim": module.width // module.heads,
    "caption_projection_dim": module.width,
    _DUAL: list(module.dual_blocks),
    "in_channels": shapes["patches/kernel"][2],
    "joint_attention_dim": shapes["context/kernel"][0],
    "num_attention_heads": module.heads,
    "num_layers": module.depth,
    "out_channels": module.out_channels,
    "patch_size": module.patch,
    "pooled_projection_dim": shapes["vector_1/kernel"][0],
    "pos_embed_max_size": module.max_size,
    "qk_norm": "rms_norm" if module.is_qk_normed else None,
    "sample_size": module.grid * module.patch,
  }
