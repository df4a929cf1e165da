"""DC-AE in a file of its own, under diffusers' names or mit-han-lab's.

The width of heads, activations and shortcuts are not known from shapes, so that
only files of the published layouts are read without a config.json.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.configs.dc_autoencoder_config import DC
from ldm_jax.pretrained.networks import ForeignNetwork, build, table_of

Tensors = Mapping[str, np.ndarray]

# Of a level in the encoder, and of the latents, by naming scheme.
_LEVELS = {
  "diffusers": r"encoder\.down_blocks\.(\d+)\.\d+\.(?:conv1|attn)\.",
  "compvis": r"encoder\.stages\.(\d+)\.op_list\.\d+\.(?:main|context_module)\.",
}
_LATENTS = {
  "diffusers": "decoder.conv_in.weight",
  "compvis": "decoder.project_in.main.conv.weight",
}


def find_dc_autoencoder(tensors: Tensors) -> ForeignNetwork | None:
  """The DC-AE of a file; None if it is of another kind.

  Raises:
    WeightsError: it is one of no published layout.
  """
  for scheme, pattern in _LEVELS.items():
    matches = (re.match(pattern, name) for name in tensors)
    levels = {int(match[1]) for match in matches if match}
    if levels and _LATENTS[scheme] in tensors:
      latents = np.shape(tensors[_LATENTS[scheme]])[1:2]
      config = _published(latents, max(levels) + 1, 0 in levels)
      if config is not None:
        network = ForeignNetwork(config, tensors, "dc_autoencoder", scheme)
        if _has_all(network):
          return network
      raise WeightsError(
        f"an {DC.kind} of {max(levels) + 1} levels and latents of {latents} "
        "channels is of no published layout; give a folder with its config.json"
      )
  return None


def _published(
  latents: tuple[int, ...], levels: int, has_finest: bool
) -> dict[str, Any] | None:
  """The config of a published layout, but for scaling_factor.

  They are SANA's f32c32, and f32c32, f64c128 and f128c512 of Chen et al. 2024,
  whose finest level has no blocks.
  """
  plain, attending = 3, levels - 3
  types = ["ResBlock"] * plain + ["EfficientViTBlock"] * attending
  config = {
    "_class_name": DC.kind,
    "encoder_block_types": types,
    "decoder_block_types": types,
  }
  if has_finest:
    is_known = (latents, levels) == ((32,), 6)
    config |= {
      "downsample_block_type": "conv",
      "upsample_block_type": "interpolate",
    }
    return config if is_known else None
  if (latents, levels) not in (((32,), 6), ((128,), 7), ((512,), 8)):
    return None
  widths = [128, 256, 512, 512, 1024, 1024, 2048, 2048][:levels]
  return config | {
    "latent_channels": latents[0],
    "encoder_block_out_channels": widths,
    "decoder_block_out_channels": widths,
    "encoder_layers_per_block": [0, 4, 8] + [2] * attending,
    "decoder_layers_per_block": [0, 5, 10] + [2] * attending,
    "encoder_qkv_multiscales": [[]] * levels,
    "decoder_qkv_multiscales": [[]] * levels,
    "decoder_norm_types": ["batch_norm"] * plain + ["rms_norm"] * attending,
    "decoder_act_fns": ["relu"] * plain + ["silu"] * attending,
  }


def _has_all(network: ForeignNetwork) -> bool:
  """Whether the file has every tensor of the config."""
  rows = table_of(build(network.config), network).rows
  return all(row.foreign_name in network.tensors for row in rows)
