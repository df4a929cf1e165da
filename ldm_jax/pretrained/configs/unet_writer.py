"""Writes the config.json of diffusers' U-Nets."""

from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.configs.defaults import (
  CONDITIONAL,
  CROSS_BLOCKS,
  MODULATION,
  PLAIN_BLOCKS,
  RESAMPLING,
  UNCONDITIONAL,
)
from ldm_jax.pretrained.configs.strict_config import DIFFUSERS
from ldm_jax.pretrained.configs.unet_reader import Inputs, attended


def unet_config(unet: UNet, inputs: Inputs) -> dict[str, Any]:
  """The config.json from which diffusers makes this network.

  Raises:
    ConfigError: diffusers has no class that computes the same.
  """
  plan, levels = unet.attention, [unet.channels * m for m in unet.multipliers]
  if unet.octaves or unet.multipliers[0] != 1:
    raise ConfigError(
      f"diffusers has no U-Net with octaves={unet.octaves} and multipliers="
      f"{unet.multipliers}; needed: octaves=0 and multipliers that start with 1"
    )
  if (unet.vector is None) != (inputs.vector is None):
    raise ConfigError(
      f"the U-Net has vector={unet.vector!r}, but its inputs have "
      f"vector={inputs.vector}; give both or none"
    )
  attended(plan, levels)
  is_conditional = plan.kind == "transformer"
  write = _conditional_config if is_conditional else _unconditional_config
  modulation = {ours: theirs for theirs, ours in MODULATION.items()}
  return {
    "_class_name": (CONDITIONAL if is_conditional else UNCONDITIONAL).kind,
    "_diffusers_version": DIFFUSERS,
    "act_fn": "silu",
    "block_out_channels": levels,
    "center_input_sample": False,
    "downsample_padding": 1,
    "dropout": unet.dropout,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": inputs.channels,
    "layers_per_block": unet.blocks,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": unet.groups,
    "num_class_embeds": inputs.vector if unet.vector == "table" else None,
    "out_channels": unet.out_channels,
    "resnet_time_scale_shift": modulation[unet.modulation],
    "sample_size": inputs.size,
  } | write(unet, inputs, levels)


def _names(kinds, depths: Sequence[int]) -> dict[str, list[str]]:
  """Names of blocks that attend where there is a depth."""
  down, up = ({a: name for name, a in side.items()} for side in kinds)
  return {
    "down_block_types": [down[depth > 0] for depth in depths],
    "up_block_types": [up[depth > 0] for depth in reversed(depths)],
  }


def _conditional_config(unet: UNet, inputs: Inputs, levels: list[int]):
  plan, kind = unet.attention, CONDITIONAL.kind
  found = {*filter(None, plan.depths), plan.mid_depth}
  if unet.resampling != "conv" or plan.mid_depth == 0 or inputs.context is None:
    raise ConfigError(
      f"diffusers has no {kind} with resampling={unet.resampling!r}, "
      f"mid_depth={plan.mid_depth} and a context of {inputs.context} features; "
      "needed: 'conv', attention in the middle, and a context"
    )
  if plan.depths[-1] not in (0, plan.mid_depth):
    raise ConfigError(
      f"the middle of a {kind} is as deep as the last level, "
      f"{plan.depths[-1]}, this one has mid_depth={plan.mid_depth}"
    )
  depths = [depth or 1 for depth in plan.depths[:-1]] + [plan.mid_depth]
  is_sized = unet.vector == "mlp" and inputs.sinusoids is not None
  is_projected = unet.vector == "mlp" and not is_sized
  return _names(CROSS_BLOCKS, plan.depths) | {
    "addition_embed_type": "text_time" if is_sized else None,
    "addition_time_embed_dim": inputs.sinusoids if is_sized else None,
    "attention_head_dim": plan.heads
    or [max(1, level // plan.head_width) for level in levels],
    "class_embed_type": "projection" if is_projected else None,
    "cross_attention_dim": inputs.context,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": list(plan.cross_only) or False,
    "projection_class_embeddings_input_dim": inputs.vector
    if unet.vector == "mlp"
    else None,
    "time_cond_proj_dim": unet.guidance_width,
    "transformer_layers_per_block": found.pop() if len(found) == 1 else depths,
    "use_linear_projection": plan.is_linear,
  }


def _unconditional_config(unet: UNet, inputs: Inputs, levels: list[int]):
  plan, kind = unet.attention, UNCONDITIONAL.kind
  if unet.guidance_width is not None:
    raise ConfigError(
      f"diffusers has no {kind} with guidance_width={unet.guidance_width}; "
      "needed: None"
    )
  if unet.vector == "mlp" or inputs.context is not None:
    raise ConfigError(
      f"diffusers has no {kind} with vector={unet.vector!r} and a context of "
      f"{inputs.context} features; needed: a table or none, and no context"
    )
  resampling = {ours: theirs for theirs, ours in RESAMPLING.items()}
  return _names(PLAIN_BLOCKS[unet.resampling], plan.depths) | {
    "add_attention": plan.mid_depth > 0,
    "attention_head_dim": _head_width(plan, levels),
    "attn_norm_num_groups": unet.groups,
    "downsample_type": resampling[unet.resampling],
    "mid_block_type": "UNetMidBlock2D",
    "upsample_type": resampling[unet.resampling],
  }


def _head_width(plan: AttentionPlan, levels: list[int]):
  """attention_head_dim of a UNet2DModel; None is one head of any width."""
  if plan.heads == 1:
    return None
  each = {plan.split(level)[1] for level in attended(plan, levels)}
  if len(each) == 1:
    return each.pop()
  return [level // plan.heads for level in levels]
