"""The config.json of diffusers' autoencoders, to and from `Autoencoder`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import GaussianBottleneck, VectorQuantizer
from ldm_jax.nn.inpainting_decoder import InpaintingAutoencoder
from ldm_jax.nn.latent_normalization import (
  BatchStatistics,
  LatentNormalization,
)
from ldm_jax.pretrained.configs.defaults import (
  ASYMMETRIC,
  ENCODER_BLOCKS,
  FLUX2,
  KL,
  VQ,
)
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  Schema,
  attending_levels,
  class_name,
  is_count,
  read,
  refusal,
  widths,
)

_SCHEMAS = {schema.kind: schema for schema in (KL, VQ, FLUX2, ASYMMETRIC)}
_DOWN, _UP = "down_block_types", "up_block_types"


def autoencoder(config: Config) -> tuple[Autoencoder, float]:
  """The first stage of AutoencoderKL, VQModel, AutoencoderKLFlux2 or
  AsymmetricAutoencoderKL, and the scale of its latents.

  The statistics of FLUX.2's latents are in its weights, not in its config; its
  module has none yet, and its scale is 1.

  Raises:
    ConfigError: a key asks for something that `Autoencoder` does not support.
  """
  kind = class_name(config, _SCHEMAS)
  values = read(config, _SCHEMAS[kind])
  latents, scale = values["latent_channels"], values.get("scaling_factor", 1.0)
  if not isinstance(scale, int | float) or scale <= 0:
    raise refusal(kind, "scaling_factor", scale, "a number above 0")
  if not is_count(latents):
    raise refusal(kind, "latent_channels", latents, "a number above 0")
  if kind == ASYMMETRIC.kind:
    return _asymmetric(values), float(scale)
  trunk, decoder = _trunk(kind, values), None
  if values.get("decoder_block_out_channels") is not None:
    widths = values["decoder_block_out_channels"]
    decoder = _trunk(kind, values | {"block_out_channels": widths})
  bottleneck = GaussianBottleneck()
  if kind == VQ.kind:
    if values["vq_embed_dim"] not in (None, latents):
      raise refusal(kind, "vq_embed_dim", values["vq_embed_dim"], (latents,))
    bottleneck = VectorQuantizer(values["num_vq_embeddings"], latents)
  module = Autoencoder(
    trunk,
    latents,
    bottleneck,
    decoder_trunk=None if decoder == trunk else decoder,
    has_quant_conv=values.get("use_quant_conv", True),
    has_post_quant_conv=values.get("use_post_quant_conv", True),
    normalization=_normalization(kind, values),
  )
  return module, float(scale)


def _trunk(kind: str, values: Config) -> ConvStack:
  channels, multipliers = widths(kind, values)
  attends = attending_levels(kind, values, *ENCODER_BLOCKS)
  return ConvStack(
    channels,
    multipliers,
    values["layers_per_block"],
    tuple(level for level, a in enumerate(attends) if a),
    values["mid_block_add_attention"],
    groups=values["norm_num_groups"],
  )


def _asymmetric(values: Mapping[str, Any]) -> InpaintingAutoencoder:
  kind, shared = ASYMMETRIC.kind, dict(values)
  levels = len(values["down_block_types"])
  for key in ("down_block_out_channels", "up_block_out_channels"):
    if not isinstance(values[key], tuple) or len(values[key]) != levels:
      raise refusal(kind, key, values[key], f"{levels} widths, one per block")
  shared["mid_block_add_attention"] = True
  down, up = (
    _trunk(
      kind,
      shared
      | {
        "block_out_channels": values[f"{side}_block_out_channels"],
        "layers_per_block": values[f"layers_per_{side}_block"],
      },
    )
    for side in ("down", "up")
  )
  return InpaintingAutoencoder(
    down, values["latent_channels"], decoder_trunk=up
  )


def _normalization(
  kind: str, values: Config
) -> LatentNormalization | BatchStatistics | None:
  """What is subtracted from latents, and what they are divided by.

  Of two statistics diffusers takes the mean and std per channel.
  """
  if kind == FLUX2.kind:
    patch = values["patch_size"]
    if not isinstance(patch, tuple) or len(patch) != 2 or len({*patch}) != 1:
      raise refusal(kind, "patch_size", patch, "two equal numbers")
    return BatchStatistics(patch=patch[0], epsilon=values["batch_norm_eps"])
  mean, std = values.get("latents_mean"), values.get("latents_std")
  shift = values.get("shift_factor")
  if type(shift) not in (int, float, type(None)):
    raise refusal(kind, "shift_factor", shift, "a number, or null")
  if (mean is None) != (std is None):
    key = "latents_std" if std is None else "latents_mean"
    raise refusal(kind, key, None, "a list, or neither of mean and std")
  if mean is None:
    return LatentNormalization((float(shift),)) if shift else None
  for key, listed in (("latents_mean", mean), ("latents_std", std)):
    if (
      not isinstance(listed, tuple) or len(listed) != values["latent_channels"]
    ):
      needed = f"a list of {values['latent_channels']} numbers, one per channel"
      raise refusal(kind, key, listed, needed)
  if min(std) <= 0:
    raise refusal(kind, "latents_std", std, "numbers above 0")
  if shift:
    raise refusal(kind, "shift_factor", shift, "null with latents_mean")
  return LatentNormalization(tuple(map(float, mean)), tuple(map(float, std)))


def autoencoder_config(
  autoencoder: Autoencoder, *, scaling_factor: float, sample_size: Any = None
) -> dict[str, Any]:
  """The config.json of the same first stage in diffusers.

  Args:
    sample_size: side of the images it was trained on; diffusers cuts larger
      ones into tiles of it if asked to.

  Raises:
    ConfigError: diffusers has no class that computes the same.
  """
  decoder = autoencoder.decoder_trunk or autoencoder.trunk
  for trunk in (autoencoder.trunk, decoder):
    if trunk.multipliers[0] != 1 or trunk.dropout:
      raise ConfigError(
        f"diffusers has no autoencoder with multipliers={trunk.multipliers} "
        f"and dropout={trunk.dropout}; needed: multipliers that start with 1, "
        "and 0"
      )
  schema = _schema_of(autoencoder)
  config = {
    "_class_name": schema.kind,
    "_diffusers_version": DIFFUSERS,
    "act_fn": "silu",
    "in_channels": 3,
    "latent_channels": autoencoder.latent_channels,
    "norm_num_groups": autoencoder.trunk.groups,
    "out_channels": 3,
    "sample_size": sample_size,
    **_block_types(autoencoder.trunk),
  }
  if schema is FLUX2 and scaling_factor != 1:
    raise ConfigError(
      f"latents scaled by {scaling_factor} and normalised by batch statistics: "
      f"{FLUX2.kind} has no scaling_factor; needed: 1"
    )
  if schema is not FLUX2:
    config["scaling_factor"] = scaling_factor
  if schema is ASYMMETRIC:
    return config | {
      "down_block_out_channels": _levels(autoencoder.trunk),
      "layers_per_down_block": autoencoder.trunk.blocks,
      "layers_per_up_block": decoder.blocks,
      "up_block_out_channels": _levels(decoder),
    }
  config |= {
    "block_out_channels": _levels(autoencoder.trunk),
    "layers_per_block": autoencoder.trunk.blocks,
    "mid_block_add_attention": autoencoder.trunk.has_mid_attention,
  }
  return config | _own_keys(autoencoder, schema)


def _own_keys(autoencoder: Autoencoder, schema: Schema) -> dict[str, Any]:
  """The keys of one class alone; AutoencoderKL's that are not its defaults."""
  if schema is VQ:
    codebook = autoencoder.bottleneck
    return {
      "num_vq_embeddings": codebook.codes,
      "vq_embed_dim": codebook.width,
    }
  quant = {
    "use_quant_conv": autoencoder.has_quant_conv,
    "use_post_quant_conv": autoencoder.has_post_quant_conv,
  }
  normalization = autoencoder.normalization
  if schema is FLUX2:
    decoder = autoencoder.decoder_trunk
    return quant | {
      "batch_norm_eps": normalization.epsilon,
      "decoder_block_out_channels": decoder and _levels(decoder),
      "patch_size": [normalization.patch] * 2,
    }
  keys = {} if all(quant.values()) else quant
  if normalization is None:
    return keys
  count = autoencoder.latent_channels
  if normalization.std == (1.0,) and len(normalization.mean) == 1:
    return keys | {"shift_factor": normalization.mean[0]}
  each = {"mean": normalization.mean, "std": normalization.std}
  return keys | {
    f"latents_{name}": list(values * count if len(values) == 1 else values)
    for name, values in each.items()
  }


def _schema_of(autoencoder: Autoencoder) -> Schema:
  """The class of diffusers that computes the same.

  Raises:
    ConfigError: there is none.
  """
  normalization, decoder = autoencoder.normalization, autoencoder.decoder_trunk
  is_batch = isinstance(normalization, BatchStatistics)
  has_quant = autoencoder.has_quant_conv and autoencoder.has_post_quant_conv
  if isinstance(autoencoder, InpaintingAutoencoder):
    schema, needs_default = ASYMMETRIC, True
    same = [
      dataclasses.replace(
        trunk, blocks=1, channels=1, multipliers=(1,), groups=1
      )
      for trunk in (autoencoder.trunk, decoder or autoencoder.trunk)
    ]
    if same[0] != same[1] or not same[0].has_mid_attention:
      raise ConfigError(
        f"{ASYMMETRIC.kind} needs an encoder and a decoder that differ in "
        "widths and blocks alone, with attention in the middle"
      )
  elif isinstance(autoencoder.bottleneck, VectorQuantizer):
    schema, needs_default = VQ, decoder is None
    if decoder is not None:
      raise ConfigError(f"{VQ.kind} of diffusers has no decoder_trunk")
  elif is_batch:
    return FLUX2
  else:
    if decoder is not None:
      raise ConfigError(
        f"{KL.kind} of diffusers has no decoder of other widths; needed: "
        "decoder_trunk=None"
      )
    return KL
  if needs_default and (normalization is not None or not has_quant):
    raise ConfigError(
      f"{schema.kind} of diffusers has quant convolutions and no normalization "
      "of its latents"
    )
  return schema


def _levels(trunk: ConvStack) -> list[int]:
  return [trunk.channels * m for m in trunk.multipliers]


def _block_types(trunk: ConvStack) -> dict[str, list[str]]:
  down, up = ({a: n for n, a in side.items()} for side in ENCODER_BLOCKS)
  levels = range(len(trunk.multipliers))
  attends = [level in trunk.attention_levels for level in levels]
  return {
    _DOWN: [down[a] for a in attends],
    _UP: [up[a] for a in reversed(attends)],
  }
