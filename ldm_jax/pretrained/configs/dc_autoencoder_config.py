"""The config.json of diffusers' AutoencoderDC, to and from its module."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.nn.deep_compression.autoencoder import (
  DCAutoencoder,
  DCLevel,
  DCStack,
)
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  Schema,
  class_name,
  is_count,
  read,
  refusal,
)
from ldm_jax.pretrained.configs.value_types import MOST_LAYERS

_WIDTHS = (128, 256, 512, 512, 1024, 1024)
_SCALES = ((), (), (), (5,), (5,), (5,))
DC = Schema(
  "AutoencoderDC",
  defaults={
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": _SCALES,
    "decoder_qkv_multiscales": _SCALES,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "decoder_conv_act_fn": "relu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "scaling_factor": 1.0,
  },
  demands={"in_channels": (3,)},
)

_BLOCKS = {"ResBlock": False, "EfficientViTBlock": True}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
  "gelu": "gelu",
  "mish": "mish",
}
_RESAMPLING = {
  "encoder": ("downsample", {"pixel_unshuffle": "pixels", "conv": "conv"}),
  "decoder": ("upsample", {"pixel_shuffle": "pixels", "interpolate": "conv"}),
}
_SHORTCUTS = {
  "encoder": "encoder_out_shortcut",
  "decoder": "decoder_in_shortcut",
}


def dc_autoencoder(config: Config) -> tuple[DCAutoencoder, float]:
  """The first stage of AutoencoderDC, and the scale of its latents.

  Raises:
    ConfigError: a key asks for something that is not supported.
  """
  kind = class_name(config, (DC.kind,))
  values = read({k: _as_tuples(v) for k, v in config.items()}, DC)
  for key in ("latent_channels", "attention_head_dim"):
    if not is_count(values[key]):
      raise refusal(kind, key, values[key], "a number above 0")
  scale = values["scaling_factor"]
  if type(scale) not in (int, float) or scale <= 0:
    raise refusal(kind, "scaling_factor", scale, "a number above 0")
  try:
    module = DCAutoencoder(
      _stack(values, "encoder"),
      _stack(values, "decoder"),
      values["latent_channels"],
      _named(values, "decoder_conv_act_fn", _ACTIVATIONS),
    )
    module.check()
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"{kind}: {error}") from None
  return module, float(scale)


def _as_tuples(value: Any) -> Any:
  """Lists within a list as tuples."""
  if not isinstance(value, list | tuple):
    return value
  return tuple(tuple(v) if isinstance(v, list) else v for v in value)


def _stack(values: Config, side: str) -> DCStack:
  """The encoder or the decoder."""
  key = f"{side}_block_out_channels"
  widths = values[key]
  is_list = isinstance(widths, tuple) and all(map(is_count, widths))
  if not is_list or len(widths) < 2:
    raise refusal(DC.kind, key, widths, "a list of two numbers or more")
  layers = _each(values, f"{side}_layers_per_block", len(widths))
  for count in layers:
    if type(count) is not int or not 0 <= count <= MOST_LAYERS:
      needed = f"numbers of layers from 0 to {MOST_LAYERS}"
      raise refusal(DC.kind, f"{side}_layers_per_block", layers, needed)
  columns = [widths, layers, _scales(values, f"{side}_qkv_multiscales", widths)]
  for key, names in (("block_types", _BLOCKS), ("norm_types", _NORMS),
                     ("act_fns", _ACTIVATIONS)):  # fmt: skip
    columns.append(_names(values, f"{side}_{key}", len(widths), names))
  key, kinds = _RESAMPLING[side]
  return DCStack(
    tuple(_level(*level) for level in zip(*columns, strict=True)),
    _named(values, f"{key}_block_type", kinds),
    _flag(values, _SHORTCUTS[side]),
    values["attention_head_dim"],
  )


def _level(
  width: int,
  blocks: int,
  scales: tuple[int, ...],
  has_attention: bool,
  norm: str,
  activation: str,
) -> DCLevel:
  """A level; blocks of one class do not read what is for the other."""
  if has_attention:
    return DCLevel(width, blocks, True, scales, norm)
  return DCLevel(width, blocks, norm=norm, activation=activation)


def _each(values: Config, key: str, levels: int) -> tuple:
  """A list of one value per level."""
  value = values[key]
  if not isinstance(value, tuple) or len(value) != levels:
    raise refusal(DC.kind, key, value, f"a list of {levels}, one per level")
  return value


def _scales(values: Config, key: str, widths: tuple) -> tuple:
  """Sizes of neighbourhoods, a list per level."""
  found = _each(values, key, len(widths))
  for sizes in found:
    is_list = isinstance(sizes, tuple) and all(map(is_count, sizes))
    if not is_list or not all(size % 2 for size in sizes):
      raise refusal(DC.kind, key, found, "lists of odd numbers, one per level")
  return found


def _names(
  values: Config, key: str, levels: int, names: Mapping[str, Any]
) -> tuple:
  """What a name stands for, per level; one name may be given for all."""
  # The encoder's norm and activation have no key.
  value = values.get(key, next(iter(names)))
  value = (value,) * levels if isinstance(value, str) else value
  if not isinstance(value, tuple) or len(value) != levels:
    needed = f"one name, or a list of {levels}, one per level"
    raise refusal(DC.kind, key, value, needed)
  return tuple(_known(key, name, names) for name in value)


def _named(values: Config, key: str, names: Mapping[str, Any]) -> Any:
  return _known(key, values[key], names)


def _known(key: str, name: Any, names: Mapping[str, Any]) -> Any:
  """What a name stands for; raises ConfigError for another."""
  if not isinstance(name, str) or name not in names:
    raise refusal(DC.kind, key, name, tuple(names))
  return names[name]


def _flag(values: Config, key: str) -> bool:
  if not isinstance(values[key], bool):
    raise refusal(DC.kind, key, values[key], (True, False))
  return values[key]


def dc_autoencoder_config(
  module: DCAutoencoder, scaling_factor: float = 1.0
) -> dict[str, Any]:
  """The config.json of the same first stage in diffusers.

  Raises:
    ConfigError: diffusers has no class that computes the same.
  """
  encoder, decoder = module.encoder_stack, module.decoder_stack
  if encoder.head_width != decoder.head_width:
    raise ConfigError(
      f"diffusers has one width of heads, not {encoder.head_width} in the "
      f"encoder and {decoder.head_width} in the decoder"
    )
  for level in encoder.levels:
    if (level.norm, level.activation) != ("rms", "silu"):
      raise ConfigError(
        f"diffusers' encoder has norm='rms' and activation='silu', not "
        f"{level.norm!r} and {level.activation!r}"
      )
  config = {
    "_class_name": DC.kind,
    "_diffusers_version": DIFFUSERS,
    "attention_head_dim": encoder.head_width,
    "decoder_act_fns": [level.activation for level in decoder.levels],
    "decoder_conv_act_fn": module.last_activation,
    "decoder_norm_types": [f"{level.norm}_norm" for level in decoder.levels],
    "in_channels": 3,
    "latent_channels": module.latent_channels,
    "scaling_factor": scaling_factor,
  }
  blocks = {is_attention: name for name, is_attention in _BLOCKS.items()}
  for side, stack in (("encoder", encoder), ("decoder", decoder)):
    key, kinds = _RESAMPLING[side]
    names = {ours: name for name, ours in kinds.items()}
    levels = stack.levels
    config |= {
      f"{side}_block_out_channels": [level.channels for level in levels],
      f"{side}_block_types": [blocks[level.has_attention] for level in levels],
      f"{side}_layers_per_block": [level.blocks for level in levels],
      f"{side}_qkv_multiscales": [list(level.scales) for level in levels],
      f"{key}_block_type": names[stack.resampling],
      _SHORTCUTS[side]: stack.has_shortcut,
    }
  return config
