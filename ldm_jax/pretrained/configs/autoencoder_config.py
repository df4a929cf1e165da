"""The config.json of diffusers' autoencoders, to and from `Autoencoder`."""

from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import GaussianBottleneck, VectorQuantizer
from ldm_jax.pretrained.configs.defaults import ENCODER_BLOCKS, KL, VQ
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  attending_levels,
  class_name,
  is_count,
  read,
  refusal,
  widths,
)


def autoencoder(config: Config) -> tuple[Autoencoder, float]:
  """The first stage of AutoencoderKL or VQModel, and the scale of its latents.

  Raises:
    ConfigError: a key asks for something that `Autoencoder` does not support.
  """
  kind = class_name(config, (KL.kind, VQ.kind))
  values = read(config, KL if kind == KL.kind else VQ)
  channels, multipliers = widths(kind, values)
  attends = attending_levels(kind, values, *ENCODER_BLOCKS)
  trunk = ConvStack(
    channels,
    multipliers,
    values["layers_per_block"],
    tuple(level for level, a in enumerate(attends) if a),
    values["mid_block_add_attention"],
    groups=values["norm_num_groups"],
  )
  latents, scale = values["latent_channels"], values["scaling_factor"]
  if not isinstance(scale, int | float) or scale <= 0:
    raise refusal(kind, "scaling_factor", scale, "a number above 0")
  if not is_count(latents):
    raise refusal(kind, "latent_channels", latents, "a number above 0")
  bottleneck = GaussianBottleneck()
  if kind == VQ.kind:
    if values["vq_embed_dim"] not in (None, latents):
      raise refusal(kind, "vq_embed_dim", values["vq_embed_dim"], (latents,))
    bottleneck = VectorQuantizer(values["num_vq_embeddings"], latents)
  return Autoencoder(trunk, latents, bottleneck), float(scale)


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
  trunk, bottleneck = autoencoder.trunk, autoencoder.bottleneck
  if trunk.multipliers[0] != 1 or trunk.dropout:
    raise ConfigError(
      f"diffusers has no autoencoder with multipliers={trunk.multipliers} and "
      f"dropout={trunk.dropout}; needed: multipliers that start with 1, and 0"
    )
  is_vq = isinstance(bottleneck, VectorQuantizer)
  down, up = ({a: n for n, a in side.items()} for side in ENCODER_BLOCKS)
  levels = range(len(trunk.multipliers))
  attends = [level in trunk.attention_levels for level in levels]
  config = {
    "_class_name": (VQ if is_vq else KL).kind,
    "_diffusers_version": DIFFUSERS,
    "act_fn": "silu",
    "block_out_channels": [trunk.channels * m for m in trunk.multipliers],
    "down_block_types": [down[a] for a in attends],
    "in_channels": 3,
    "latent_channels": autoencoder.latent_channels,
    "layers_per_block": trunk.blocks,
    "mid_block_add_attention": trunk.has_mid_attention,
    "norm_num_groups": trunk.groups,
    "out_channels": 3,
    "sample_size": sample_size,
    "scaling_factor": scaling_factor,
    "up_block_types": [up[a] for a in reversed(attends)],
  }
  if is_vq:
    config["num_vq_embeddings"] = bottleneck.codes
    config["vq_embed_dim"] = bottleneck.width
  return config
