"""What a pipeline says of itself: its index, its card, its prefixes."""

from collections.abc import Sequence
from typing import Any

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.pretrained.configs.strict_config import DIFFUSERS

_CARD = """---
tags:
{tags}
library_name: diffusers
---

# A latent diffusion model

Written by ldm_jax as a `{kind}`. In Python, with diffusers:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder")
```

There is no safety checker with it. Licence and training data are for its
author to state here.
"""
# Where diffusers looks for a part's class, if not among its own models.
LIBRARIES = {ClipText: "transformers", TextEncoder: "latent_diffusion"}
_TAGS = ("stable-diffusion", "stable-diffusion-diffusers", "diffusers", "jax")


def read_index(
  model: LatentDiffusion,
  networks: Sequence[Any],
  words: ClipPrompts | Tokenizer | None,
) -> dict[str, Any]:
  """model_index.json: the pipeline's class and where each part's is found.

  Raises:
    ConfigError: diffusers has no pipeline for such a model.
  """
  unet = next(network for network in networks if network.name == "unet")
  kind = pipeline(model, unet.config["in_channels"])
  listed: dict[str, Any] = {
    "_class_name": kind,
    "_diffusers_version": DIFFUSERS,
    "scheduler": ["diffusers", "DDIMScheduler"],
  }
  renamed = old_names(kind)
  for network in networks:
    classes = network.config.get("architectures") or [
      network.config["_class_name"]
    ]
    library = LIBRARIES.get(type(network.module), "diffusers")
    listed[renamed.get(network.name, network.name)] = [library, classes[0]]
  is_bert = kind == "LDMTextToImagePipeline"
  for name in tokenizers(model, words):
    kind_of_words = "BertTokenizer" if is_bert else "CLIPTokenizer"
    listed[name] = ["transformers", kind_of_words]
  if kind.startswith("StableDiffusionXL"):
    part = next(p for p in model.conditioners if isinstance(p, ClipEmbedder))
    listed["force_zeros_for_empty_prompt"] = part.null == "zeros"
    if kind != "StableDiffusionXLPipeline":  # which takes no such argument
      ends = {getattr(part, "ends_with", None) for part in model.conditioners}
      listed["requires_aesthetics_score"] = "score" in ends
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
      listed.setdefault(name, [None, None])
    listed |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
  elif kind in ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"):
    listed |= {
      "safety_checker": [None, None],
      "feature_extractor": [None, None],
      "requires_safety_checker": False,
    }
  return listed


def old_names(kind: str) -> dict[str, str]:
  """What a pipeline calls parts that all others call otherwise."""
  if kind == "LDMPipeline":
    return {"vae": "vqvae"}
  if kind == "LDMTextToImagePipeline":
    return {"vae": "vqvae", "text_encoder": "bert"}
  return {}


def pipeline(model: LatentDiffusion, channels: int) -> str:
  """The class of diffusers that samples from such a model.

  Args:
    channels: that its U-Net reads.

  Raises:
    ConfigError: it has none, or one that asks for more than the model is.
  """
  kinds = {type(part) for part in model.conditioners}
  if ClassEmbedder in kinds:
    raise ConfigError(
      "diffusers has no pipeline for LDM's class embedder; write a single file "
      "instead, or the U-Net and the autoencoder by themselves"
    )
  if ClipEmbedder not in kinds:
    return "LDMTextToImagePipeline" if TextEmbedder in kinds else "LDMPipeline"
  if isinstance(model.first_stage.bottleneck, VectorQuantizer):
    raise ConfigError(
      "StableDiffusionPipeline takes no autoencoder that quantises; write "
      "the U-Net and the autoencoder by themselves"
    )
  latents = model.first_stage.latent_channels
  if model.unet.vector == "table":
    raise ConfigError(
      "StableDiffusionUpscalePipeline noises the image it is given by a "
      "schedule that this model does not hold; write a single file instead, or "
      "the U-Net and the autoencoder by themselves"
    )
  if channels not in (latents, 2 * latents + 1):
    raise ConfigError(
      f"diffusers has no text pipeline for a U-Net that reads {channels} "
      f"channels beside latents of {latents}; write a single file instead, or "
      "the U-Net and the autoencoder by themselves"
    )
  is_inpainting = channels > latents
  sizes = [p for p in model.conditioners if isinstance(p, SizeEmbedder)]
  if not sizes:
    return f"StableDiffusion{'Inpaint' * is_inpainting}Pipeline"
  is_refiner = sizes[0].ends_with == "score"
  middle = "Inpaint" if is_inpainting else "Img2Img" * is_refiner
  return f"StableDiffusionXL{middle}Pipeline"


def places(model: LatentDiffusion) -> list[str]:
  """Subfolders of the text encoders; SDXL's refiner has only a second one."""
  names = ["text_encoder", "text_encoder_2"]
  for part in model.conditioners:
    if isinstance(part, ClassEmbedder):
      return ["class_embedder"]
    if isinstance(part, SizeEmbedder) and part.ends_with == "score":
      return names[1:]
  parts = [p for p in model.conditioners if isinstance(p, ClipEmbedder)]
  if parts:
    return names[: len(parts[0].encoders)]
  return names[:1] if model.conditioners else []


def tokenizers(
  model: LatentDiffusion, words: ClipPrompts | Tokenizer | None
) -> dict[str, Any]:
  """Tokenizers by the names of their subfolders."""
  if words is None:
    return {}
  if isinstance(words, Tokenizer):
    return {"tokenizer": words.backend}
  names = [name.replace("text_encoder", "tokenizer") for name in places(model)]
  each = [syntax.tokenizer.backend for syntax in words.syntaxes]
  return dict(zip(names, each, strict=True))


def prefixes(model: LatentDiffusion) -> dict[str, tuple[str, str]]:
  """Prefix and naming of each network within a single file."""
  found = {
    "unet": ("model.diffusion_model.", "unet"),
    "vae": ("first_stage_model.", "autoencoder"),
  }
  is_sized = any(isinstance(p, SizeEmbedder) for p in model.conditioners)
  for part in model.conditioners:
    if isinstance(part, ClassEmbedder):
      found["class_embedder"] = ("cond_stage_model.", "classes")
    elif isinstance(part, TextEmbedder):
      found["text_encoder"] = ("cond_stage_model.", "text")
    elif isinstance(part, ClipEmbedder):
      found |= dict(zip(places(model), _towers(part, is_sized), strict=True))
  return found


def _towers(part: ClipEmbedder, is_sized: bool) -> list[tuple[str, str]]:
  """OpenAI's towers keep transformers' names, OpenCLIP's their own."""
  found = []
  for i, tower in enumerate(part.encoders):
    is_open = tower.activation == "gelu"
    start = f"conditioner.embedders.{i}." if is_sized else "cond_stage_model."
    found.append(
      (f"{start}model.", "open_clip")
      if is_open
      else (f"{start}transformer.text_model.", "clip")
    )
  return found


def model_card(listed: dict[str, Any]) -> str:
  """README.md for the hub."""
  kind = listed["_class_name"]
  tags = [*_TAGS, "text-to-image"] if "text_encoder" in listed else list(_TAGS)
  return _CARD.format(tags="\n".join(f"- {tag}" for tag in tags), kind=kind)
