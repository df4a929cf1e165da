"""The config.json of diffusers' FluxTransformer2DModel, to and from `Flux`."""

from typing import Any

import jax.numpy as jnp

from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.flux.packing import SIDE
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

FLUX = Schema(
  "FluxTransformer2DModel",
  defaults={
    "in_channels": 64,
    "out_channels": 0,  # null: in_channels
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
  },
  demands={"patch_size": (1,)},  # its tokens are packed before
)
FLOW_STEPS = 1000  # times of a published model's schedule here
SIZE = 128  # side of the latents of FluxPipeline's images
_PACKED = SIDE * SIDE  # latents of a token
_LAYERS = ("num_layers", "num_single_layers")


def flux(config: Config) -> Flux:
  """The network of a FluxTransformer2DModel.

  Raises:
    ConfigError: a key asks for something that `Flux` does not support.
  """
  values = _read(config)
  heads = values["num_attention_heads"]
  try:
    return Flux(
      values["out_channels"] // _PACKED,
      heads * values["attention_head_dim"],
      values["num_layers"],
      values["num_single_layers"],
      heads,
      tuple(values["axes_dims_rope"]),
      values["guidance_embeds"],
      FLOW_STEPS,
    )
  except ValueError as error:
    raise ConfigError(f"{FLUX.kind}: {error}") from error


def inputs(config: Config) -> Inputs:
  """The inputs of the config's network.

  Raises:
    ConfigError: as `flux`.
  """
  values = _read(config)
  return Inputs(
    values["in_channels"] // _PACKED,
    SIZE,
    context=values["joint_attention_dim"],
    vector=values["pooled_projection_dim"],
    is_flux=True,
  )


def _read(config: Config) -> dict[str, Any]:
  """The schema's values, all counts checked; out_channels is a number."""
  class_name(config, (FLUX.kind,))
  values = read(config, FLUX)
  values["out_channels"] = values["out_channels"] or values["in_channels"]
  for key, default in FLUX.defaults.items():
    is_counted = type(default) is int and key not in _LAYERS
    if is_counted and not is_count(values[key]):
      raise refusal(FLUX.kind, key, values[key], "a number above 0")
  for key in _LAYERS:
    is_number = type(values[key]) is int
    if not is_number or not 0 <= values[key] <= MOST_LAYERS:
      raise refusal(FLUX.kind, key, values[key], f"0 to {MOST_LAYERS}")
  for key in ("in_channels", "out_channels"):
    if values[key] % _PACKED:
      raise refusal(FLUX.kind, key, values[key], f"a multiple of {_PACKED}")
  if type(values["guidance_embeds"]) is not bool:
    key = "guidance_embeds"
    raise refusal(FLUX.kind, key, values[key], "true or false")
  axes = values["axes_dims_rope"]
  if not isinstance(axes, tuple) or not all(map(is_count, axes)):
    raise refusal(FLUX.kind, "axes_dims_rope", axes, "a list of numbers")
  return values


def init_inputs(config: Config) -> tuple[Any, ...]:
  """The smallest inputs that the config's network takes, all zero."""
  found = inputs(config)
  condition = Condition(
    context=jnp.zeros((1, 1, found.context)),
    vector=jnp.zeros((1, found.vector)),
  )
  latents = jnp.zeros((1, SIDE, SIDE, found.channels))
  return latents, jnp.zeros((1,)), condition


def flux_config(module: Flux, params: Any) -> dict[str, Any]:
  """The config.json from which diffusers makes this network.

  Args:
    params: by which it is known how many channels and features it reads.

  Raises:
    ConfigError: its times are not those that a published model is read with.
  """
  if module.flow_steps != FLOW_STEPS:
    raise ConfigError(
      f"a {FLUX.kind} of flow_steps={module.flow_steps} would be read with "
      f"{FLOW_STEPS}; needed: the schedule rectified_flow of that many steps"
    )
  width = lambda name: params[name]["kernel"].shape[0]
  return {
    "_class_name": FLUX.kind,
    "_diffusers_version": DIFFUSERS,
    "attention_head_dim": module.width // module.heads,
    "axes_dims_rope": list(module.axes),
    "guidance_embeds": module.embeds_guidance,
    "in_channels": width("patches"),
    "joint_attention_dim": width("context"),
    "num_attention_heads": module.heads,
    "num_layers": module.double_depth,
    "num_single_layers": module.single_depth,
    "out_channels": module.out_channels * _PACKED,
    "patch_size": 1,
    "pooled_projection_dim": width("vector_1"),
  }
