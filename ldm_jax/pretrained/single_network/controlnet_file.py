"""A ControlNet in one file, under the names of its own code or of diffusers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.embedders import SizeEmbedder
from ldm_jax.pretrained.configs.unet_reader import CONTROL
from ldm_jax.pretrained.configs.unet_writer import unet_config
from ldm_jax.pretrained.export import unet_inputs
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.single_file.renamed_tensors import under_prefix
from ldm_jax.weights.files import read_tensors

# (naming scheme, prefix, first convolution of the hint's encoder). The files of
# ControlNet's own code have the prefix; whole models may be in them too.
_FIRST = "input_hint_block.0.weight"
_SITES = (
  ("compvis", "control_model.", _FIRST),
  ("compvis", "", _FIRST),
  ("diffusers", "", "controlnet_cond_embedding.conv_in.weight"),
)
_HINTS = {
  "compvis": "input_hint_block.{}.weight",
  "diffusers": "controlnet_cond_embedding.blocks.{}.weight",
}
# Tensors of files that are something else, and what that is.
_OTHERS = {
  "lora_controlnet": "a Control-LoRA, which changes the model's own U-Net",
  "difference": "the difference from a model's U-Net; add it first",
  "task_embedding": "a ControlNet of several kinds (union)",
  "image_proj.proj.weight": "an IP-Adapter",
  "adapter.body.0.resnets.0.block1.weight": "a T2I-Adapter",
  "body.0.block1.weight": "a T2I-Adapter",
}


def controlnet_file(path: str, loaded: LoadedModel) -> ForeignNetwork:
  """The ControlNet of a file, which says by shapes alone what it is.

  Everything but its hint's encoder is as in the model's U-Net.

  Raises:
    ConfigError: the file holds no ControlNet.
    WeightsError: it is for another U-Net, or unreadable.
  """
  tensors = read_tensors(path)
  for mark, kind in _OTHERS.items():
    if mark in tensors or f"control_model.{mark}" in tensors:
      raise ConfigError(
        f"controlnet {path!r} holds {kind}; needed is a ControlNet "
        "(--controlnet)"
      )
  found = next((s for s in _SITES if s[1] + s[2] in tensors), None)
  if found is None:
    raise ConfigError(
      f"controlnet {path!r} has no tensor {_FIRST} or {_SITES[-1][2]}, and is "
      "no ControlNet (--controlnet)"
    )
  scheme, prefix, _ = found
  own = under_prefix(tensors, prefix)
  config = _config(loaded, _hint_channels(own, scheme, found[2]))
  _check_width(path, own, scheme, config)
  return ForeignNetwork(config, own, "unet", scheme, path)


def _hint_channels(
  tensors: Mapping[str, np.ndarray], scheme: str, first: str
) -> list[int]:
  """Widths of the hint's encoder: every other convolution has a stride."""
  widths, number = [np.shape(tensors[first])[0]], 0
  while True:
    position = 2 * number + 1
    index = 2 * position + 2 if scheme == "compvis" else position
    name = _HINTS[scheme].format(index)
    if name not in tensors:
      return widths
    widths.append(np.shape(tensors[name])[0])
    number += 1


def _config(loaded: LoadedModel, hints: list[int]) -> dict[str, Any]:
  """The config.json of a ControlNet for the model's U-Net."""
  model = loaded.model
  sizes = model.find_conditioner(SizeEmbedder)
  inputs = unet_inputs(loaded.params.unet["params"])._replace(
    channels=model.unet.out_channels,
    sinusoids=None if sizes is None else sizes.width,
  )
  config = unet_config(model.unet, inputs)
  for key in ("up_block_types", "out_channels", "time_cond_proj_dim"):
    config.pop(key, None)
  return config | {
    "_class_name": CONTROL,
    "conditioning_embedding_out_channels": hints,
  }


def _check_width(
  path: str,
  tensors: Mapping[str, np.ndarray],
  scheme: str,
  config: Mapping[str, Any],
) -> None:
  """Raises WeightsError for a ControlNet of another family than the model."""
  key = "transformer_blocks.0.attn2.to_k.weight"
  name = next((name for name in tensors if name.endswith(key)), None)
  found = None if name is None else np.shape(tensors[name])[-1]
  needed = config.get("cross_attention_dim")
  if found != needed:
    raise WeightsError(
      f"controlnet {path!r} was made for another U-Net, which reads {found} "
      f"features of text; the model's reads {needed} (--controlnet)"
    )
