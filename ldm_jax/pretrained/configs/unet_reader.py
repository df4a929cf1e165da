"""Reads the config.json of diffusers' U-Nets and ControlNets."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from ldm_jax.errors import ConfigError
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.configs.defaults import (
  CONDITIONAL,
  CROSS_BLOCKS,
  MODULATION,
  PLAIN_BLOCKS,
  RESAMPLING,
  UNCONDITIONAL,
)
from ldm_jax.pretrained.configs.strict_config import (
  Config,
  attending_levels,
  class_name,
  is_count,
  one_for_all_levels,
  read,
  refusal,
  widths,
)

CONTROL = "ControlNetModel"
_HINTS = {
  "conditioning_channels": (3,),
  "controlnet_conditioning_channel_order": ("rgb",),
  "global_pool_conditions": (False, None),
}
_SCHEMAS = {schema.kind: schema for schema in (CONDITIONAL, UNCONDITIONAL)}


class Inputs(NamedTuple):
  """The inputs of a U-Net, whose sizes the module takes from its arrays.

  Attributes:
    channels: of x_t and of what is concatenated with it.
    size: side of the latents it was trained on; nothing depends on it.
    context: features of a token, or None without cross-attention.
    vector: features of `Condition.vector`, or None if there is none.
    sinusoids: features of each of SDXL's sizes within the vector; None if it
      holds none, as unCLIP's.
    is_flux: whether it is of a FLUX.
  """

  channels: int
  size: Any = None
  context: int | None = None
  vector: int | None = None
  sinusoids: int | None = None
  is_flux: bool = False


def inputs(config: Config) -> Inputs:
  """The inputs of the config's network.

  Raises:
    ConfigError: as `unet`.
  """
  config = _unet_config(config)
  kind = class_name(config, _SCHEMAS)
  values = read(config, _SCHEMAS[kind])
  is_sized = values.get("addition_embed_type") is not None
  return Inputs(
    values["in_channels"],
    values["sample_size"],
    one_for_all_levels(kind, values, "cross_attention_dim")
    if kind == CONDITIONAL.kind
    else None,
    _vector(kind, values)[1],
    values["addition_time_embed_dim"] if is_sized else None,
  )


def unet(config: Config) -> UNet:
  """The U-Net of diffusers' UNet2DConditionModel or UNet2DModel.

  attention_head_dim is the number of heads in the former and their width in
  the latter. As one number per level, it becomes the width that all levels
  share (SD 2, SDXL), or else the number. UNet2DModel itself takes no such list;
  one is written here for the eight heads of LDM's LSUN churches.

  Raises:
    ConfigError: a key asks for something that `UNet` does not support.
  """
  config = _unet_config(config)
  kind = class_name(config, _SCHEMAS)
  values = read(config, _SCHEMAS[kind])
  channels, multipliers = widths(kind, values)
  if values["resnet_time_scale_shift"] not in MODULATION:
    raise _refused(kind, values, "resnet_time_scale_shift", MODULATION)
  is_conditional = kind == CONDITIONAL.kind
  resampling = "conv" if is_conditional else _resampling(values)
  plan = _cross_plan(values) if is_conditional else _plain_plan(values)
  attended(plan, values["block_out_channels"])
  return UNet(
    values["out_channels"],
    channels,
    multipliers,
    one_for_all_levels(kind, values, "layers_per_block"),
    plan,
    vector=_vector(kind, values)[0],
    modulation=MODULATION[values["resnet_time_scale_shift"]],
    resampling=resampling,
    dropout=values["dropout"],
    groups=values["norm_num_groups"],
    guidance_width=_guidance_width(kind, values),
  )


def _guidance_width(kind: str, values: Config) -> int | None:
  """Features of the embedding of the scale of guidance, as in LCM."""
  width = values.get("time_cond_proj_dim")
  if width is not None and not (is_count(width) and width % 2 == 0):
    raise _refused(
      kind, values, "time_cond_proj_dim", "an even number, or null"
    )
  return width


def controlnet(config: Config) -> ControlNet:
  """The ControlNet of diffusers' ControlNetModel.

  Raises:
    ConfigError: a key asks for something that `ControlNet` does not support.
  """
  for key, needed in _HINTS.items():
    if key in config and config[key] not in needed:
      raise refusal(CONTROL, key, config[key], needed)
  half = unet(config).clone(guidance_width=None)
  fields = [field.name for field in dataclasses.fields(half)]
  kept = {n: getattr(half, n) for n in fields if n not in ("parent", "name")}
  hints = config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))
  return ControlNet(**kept, hint_channels=tuple(hints))


def _unet_config(config: Config) -> Config:
  """The config of the U-Net that a ControlNet is for; others as they are."""
  if class_name(config, (*_SCHEMAS, CONTROL)) != CONTROL:
    return config
  down = config.get(
    "down_block_types", CONDITIONAL.defaults["down_block_types"]
  )
  mirror = {"DownBlock2D": "UpBlock2D"} | {
    "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"
  }
  own = {"conditioning_embedding_out_channels", *_HINTS}
  return {k: v for k, v in config.items() if k not in own} | {
    "_class_name": CONDITIONAL.kind,
    "up_block_types": [mirror.get(name, name) for name in reversed(down)],
  }


def attended(plan: AttentionPlan, levels: Sequence[int]) -> list[int]:
  """Channels wherever the plan attends, the middle last.

  Raises:
    ConfigError: the heads do not divide them.
  """
  depths = (*plan.depths, plan.mid_depth)
  pairs = zip((*levels, levels[-1]), depths, strict=True)
  found = [level for level, depth in pairs if depth]
  try:
    for level in found:
      plan.split(level)
  except ValueError as error:
    raise ConfigError(f"attention_head_dim: {error}") from error
  return found


def _refused(kind, values, key, needed) -> ConfigError:
  return refusal(kind, key, values[key], needed)


def _resampling(values: Config) -> str:
  kind, down = UNCONDITIONAL.kind, values["downsample_type"]
  if down not in RESAMPLING:
    raise _refused(kind, values, "downsample_type", RESAMPLING)
  if values["upsample_type"] != down:
    raise _refused(kind, values, "upsample_type", (down,))
  return RESAMPLING[down]


def _vector(kind: str, values: Config) -> tuple[str | None, int | None]:
  """How a vector joins the time embedding, and how many features it has."""
  added = values.get("addition_embed_type")
  if added not in (None, "text_time"):
    raise _refused(kind, values, "addition_embed_type", (None, "text_time"))
  embeds, rows = values["class_embed_type"], values["num_class_embeds"]
  is_projected = kind == CONDITIONAL.kind and added is None
  needed = (None, "projection") if is_projected else (None,)
  if embeds not in needed:
    raise _refused(kind, values, "class_embed_type", needed)
  if added is None and embeds is None:
    return (None, None) if rows is None else ("table", rows)
  if embeds is None and rows is not None:
    raise _refused(kind, values, "num_class_embeds", (None,))
  width = "projection_class_embeddings_input_dim"
  if not is_count(values[width]):
    raise _refused(kind, values, width, "the features of the vector")
  return "mlp", values[width]


def _cross_plan(values: Config) -> AttentionPlan:
  """Where a UNet2DConditionModel attends, and how."""
  kind, levels = CONDITIONAL.kind, values["block_out_channels"]
  attends = attending_levels(kind, values, *CROSS_BLOCKS)
  depths = values["transformer_layers_per_block"]
  depths = depths if isinstance(depths, tuple) else (depths,) * len(levels)
  if len(depths) != len(levels) or not all(map(is_count, depths)):
    key = "transformer_layers_per_block"
    raise _refused(kind, values, key, "a number, or one per level")
  if values["reverse_transformer_layers_per_block"] not in (None, depths[::-1]):
    key = "reverse_transformer_layers_per_block"
    raise _refused(kind, values, key, (None,))
  only = values["only_cross_attention"]
  only = only if isinstance(only, tuple) else (only,) * len(levels)
  return AttentionPlan(
    tuple(d if a else 0 for d, a in zip(depths, attends, strict=True)),
    depths[-1],
    **_heads(kind, values, attends),
    is_linear=values["use_linear_projection"],
    cross_only=only if any(only) else (),
  )


def _plain_plan(values: Config) -> AttentionPlan:
  """Where a UNet2DModel attends, and how."""
  kind, groups = UNCONDITIONAL.kind, values["norm_num_groups"]
  attends = attending_levels(kind, values, *PLAIN_BLOCKS[_resampling(values)])
  # By default scale_shift leaves out the norm of the middle.
  is_default = values["resnet_time_scale_shift"] == "default"
  needed = (groups, None) if is_default else (groups,)
  if values["add_attention"] and values["attn_norm_num_groups"] not in needed:
    raise _refused(kind, values, "attn_norm_num_groups", needed)
  return AttentionPlan(
    tuple(map(int, attends)),
    int(values["add_attention"]),
    **_heads(kind, values, attends),
    kind="plain",
  )


def _heads(
  kind: str, values: Config, attends: Sequence[bool]
) -> dict[str, int | None]:
  """`heads` and `head_width` of the levels that attend, and of the middle."""
  levels, given = values["block_out_channels"], values["attention_head_dim"]
  fields = ["heads", "head_width"]
  if kind == UNCONDITIONAL.kind:
    fields.reverse()
    given = (*levels,) if given is None else given
  if is_count(given):
    return dict(zip(fields, (given, None), strict=True))
  is_list = isinstance(given, tuple) and all(map(is_count, given))
  if is_list and len(given) == len(levels):
    attending = [i for i, a in enumerate(attends) if a] + [len(levels) - 1]
    others = {divmod(levels[i], given[i]) for i in attending}
    if len(others) == 1 and (other := others.pop())[1] == 0:
      return dict(zip(fields, (None, other[0]), strict=True))
    if len(same := {given[i] for i in attending}) == 1:
      return dict(zip(fields, (same.pop(), None), strict=True))
  raise _refused(
    kind,
    values,
    "attention_head_dim",
    "one number of heads or one width of them for all levels",
  )
