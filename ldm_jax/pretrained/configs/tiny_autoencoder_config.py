"""The config.json of diffusers' AutoencoderTiny, to and from its module."""

from typing import Any

from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  Schema,
  class_name,
  is_count,
  read,
  refusal,
)

# latent_magnitude and latent_shift are for storing latents as 8-bit images.
TINY = Schema(
  "AutoencoderTiny",
  defaults={
    "latent_channels": 4,
    "encoder_block_out_channels": (64, 64, 64, 64),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "scaling_factor": 1.0,
  },
  demands={
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
    "shift_factor": (None, 0),
  },
  passive=(
    "block_out_channels",
    "force_upcast",
    "latent_magnitude",
    "latent_shift",
  ),
)


def tiny_autoencoder(config: Config) -> tuple[TinyAutoencoder, float]:
  """The first stage of AutoencoderTiny, and the scale of its latents.

  Raises:
    ConfigError: a key asks for something that is not supported.
  """
  kind = class_name(config, (TINY.kind,))
  values = read(config, TINY)
  blocks = []
  for side in ("encoder", "decoder"):
    key = f"num_{side}_blocks"
    counts, widths = values[key], values[f"{side}_block_out_channels"]
    is_list = isinstance(counts, tuple) and isinstance(widths, tuple)
    if not is_list or not counts or not all(map(is_count, counts)):
      raise refusal(kind, key, counts, "a list of numbers of blocks")
    if len(widths) != len(counts) or not all(map(is_count, widths)):
      needed = f"{len(counts)} equal numbers of channels"
      raise refusal(kind, f"{side}_block_out_channels", widths, needed)
    blocks.append(counts)
  each = set(values["encoder_block_out_channels"])
  each |= set(values["decoder_block_out_channels"])
  if len(each) != 1:
    needed = "the same number of channels for all blocks"
    raise refusal(kind, "encoder_block_out_channels", sorted(each), needed)
  if len(blocks[0]) != len(blocks[1]):
    needed = f"{len(blocks[0])} levels, as the encoder has"
    raise refusal(kind, "num_decoder_blocks", blocks[1], needed)
  latents, scale = values["latent_channels"], values["scaling_factor"]
  if not is_count(latents):
    raise refusal(kind, "latent_channels", latents, "a number above 0")
  if type(scale) not in (int, float) or scale <= 0:
    raise refusal(kind, "scaling_factor", scale, "a number above 0")
  return TinyAutoencoder(each.pop(), latents, *blocks), float(scale)


def tiny_autoencoder_config(
  module: TinyAutoencoder, scaling_factor: float = 1.0
) -> dict[str, Any]:
  """The config.json of the same first stage in diffusers."""
  widths = [module.channels] * len(module.encoder_blocks)
  return {
    "_class_name": TINY.kind,
    "_diffusers_version": DIFFUSERS,
    "act_fn": "relu",
    "decoder_block_out_channels": widths,
    "encoder_block_out_channels": widths,
    "in_channels": 3,
    "latent_channels": module.latent_channels,
    "num_decoder_blocks": list(module.decoder_blocks),
    "num_encoder_blocks": list(module.encoder_blocks),
    "out_channels": 3,
    "scaling_factor": scaling_factor,
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
  }
