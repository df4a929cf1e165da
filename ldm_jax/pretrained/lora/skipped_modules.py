"""What other programs skip of a LoRA file that is written here."""

import re
from collections.abc import Sequence
from typing import Literal

from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import SizeEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder

Module = tuple[str, str]  # (network, name)

# Of sd-scripts' networks/lora.py: the U-Net's transformers, residual blocks and
# samplers, the text encoders' attention and MLPs.
_OF_UNET = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers)\.")
_OF_TEXT = re.compile(r"\.(self_attn|mlp|SelfAttention|DenseReluDense)\.")
_KNOWN = (ClipEmbedder, T5Embedder, SizeEmbedder)


def skipped_modules(
  model: LatentDiffusion,
  modules: Sequence[Module],
  form: Literal["kohya", "peft"],
) -> str | None:
  """A line that names what diffusers, sd-scripts and ComfyUI will skip.

  None if they read everything.
  """
  if unknown := _unknown_parts(model):
    return (
      "diffusers, sd-scripts and ComfyUI have no model with "
      f"{unknown}, so they skip all {len(modules)} modules of this LoRA; "
      "ldm_jax reads it"
    )
  names = [name for network, name in modules if not _is_trained(network, name)]
  if form == "peft" or not names:
    return None
  listed = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
  text = (
    f"sd-scripts skips {len(names)} of the LoRA's {len(modules)} modules: "
    f"{listed}"
  )
  if any(network == "unet" for network, name in modules if name in names):
    text += (
      "; diffusers 0.36 skips those of the U-Net too (0.42 add_embedding "
      "alone), unless the file has peft's form"
    )
  return text


def _unknown_parts(model: LatentDiffusion) -> str:
  """What of a model no published pipeline has."""
  parts = [
    type(conditioner).__name__
    for conditioner in model.conditioners
    if not isinstance(conditioner, _KNOWN)
  ]
  if octaves := getattr(model.unet, "octaves", 0):
    parts.append(f"octaves={octaves} of coordinates")
  return " and ".join(parts)


def _is_trained(network: str, name: str) -> bool:
  """Whether sd-scripts has LoRAs for a module."""
  if network == "transformer":
    return True
  known = _OF_UNET if network == "unet" else _OF_TEXT
  return known.search(f".{name}") is not None
