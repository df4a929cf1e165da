"""Describes a pipeline: model_index.json, model card, tensor prefixes."""

from collections.abc import Mapping, Sequence
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
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.pretrained.configs import scheduler_config
from ldm_jax.pretrained.configs.strict_config import DIFFUSERS
from ldm_jax.pretrained.dit.folder import NAME as TRANSFORMER
from ldm_jax.pretrained.dit.folder import label_embedder
from ldm_jax.pretrained.flux import folder as flux_folder
from ldm_jax.pretrained.mmdit.folder import ABSENT, SCHEDULER
from ldm_jax.pretrained.mmdit.folder import PIPELINE as SD3_PIPELINE
from ldm_jax.pretrained.text.subfolders import subfolders

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

It has no safety checker. The author should state licence and training data
here.
"""
# Where diffusers looks for a component's class, if not among its own models.
LIBRARIES = {
  ClipText: "transformers",
  T5Encoder: "transformers",
  TextEncoder: "latent_diffusion",
}
_TAGS = ("stable-diffusion", "stable-diffusion-diffusers", "diffusers", "jax")


def model_index(
  model: LatentDiffusion,
  networks: Sequence[Any],
  tokenizer: ClipPrompts | Tokenizer | None,
  scheduler: str = "DDIMScheduler",
  t5_tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
  """model_index.json: the classes of the pipeline and of its components.

  Raises:
    ConfigError: diffusers has no pipeline for such a model.
  """
  names = ("unet", TRANSFORMER)
  unet = next(network for network in networks if network.name in names)
  kind = pipeline(model, unet.config["in_channels"])
  listed: dict[str, Any] = {
    "_class_name": kind,
    "_diffusers_version": DIFFUSERS,
    "scheduler": ["diffusers", scheduler],
  }
  renamed = old_names(kind)
  for network in networks:
    classes = network.config.get("architectures") or [
      network.config["_class_name"]
    ]
    library = LIBRARIES.get(type(network.module), "diffusers")
    listed[renamed.get(network.name, network.name)] = [library, classes[0]]
  is_bert = kind == "LDMTextToImagePipeline"
  for name, own in tokenizers(model, tokenizer, t5_tokenizer).items():
    class_name = "BertTokenizer" if is_bert else "CLIPTokenizer"
    if t5_tokenizer is not None and own is t5_tokenizer.backend:
      class_name = "T5TokenizerFast"
    listed[name] = ["transformers", class_name]
  if kind == SD3_PIPELINE:
    listed = ABSENT | listed
  elif kind in flux_folder.PIPELINES:
    listed = flux_folder.absent(kind) | listed
  elif kind.startswith("StableDiffusionXL"):
    listed |= unconditional_key(model)
    if kind.endswith(("XLInpaintPipeline", "XLImg2ImgPipeline")):
      ends = {getattr(c, "ends_with", None) for c in model.conditioners}
      listed["requires_aesthetics_score"] = "score" in ends
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
      listed.setdefault(name, [None, None])
    listed |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
  elif kind.startswith("StableDiffusion"):
    listed |= {
      "safety_checker": [None, None],
      "feature_extractor": [None, None],
      "requires_safety_checker": False,
    }
  return listed


def class_names(
  model: LatentDiffusion, names: Sequence[str]
) -> dict[str, dict[str, str]]:
  """DiTPipeline's id2label; {} without names.

  Raises:
    ConfigError: the model is no DiT, or has another number of labels.
  """
  if not names:
    return {}
  if not isinstance(model.unet, DiT):
    raise ConfigError(
      "only diffusers' DiTPipeline holds names of classes; leave classes out"
    )
  needed = label_embedder(model).classes
  if len(names) != needed:
    raise ConfigError(f"{len(names)} names for {needed} classes; give one each")
  return {"id2label": {str(i): name for i, name in enumerate(names)}}


def unconditional_key(model: LatentDiffusion) -> dict[str, bool]:
  """SDXL's key for an unconditional input of zeros; {} for other models.

  Raises:
    ConfigError: the unconditional input of another model is zeros, or its text
      encoder skips blocks, which no key says.
  """
  embedder = model.find_conditioner(ClipEmbedder)
  if embedder is None or isinstance(model.unet, MMDiT | Flux):
    return {}
  is_zeros = embedder.null == "zeros"
  is_sdxl = model.find_conditioner(SizeEmbedder) is not None
  skips = (1 if is_sdxl else 0,) * len(embedder.encoders)
  if embedder.skips != skips or embedder.is_normed == is_sdxl:
    raise ConfigError(
      f"the text encoder has skips={embedder.skips} and "
      f"is_normed={embedder.is_normed}, which no key of diffusers' folders or "
      f"single files says; needed: {skips} and {not is_sdxl}"
    )
  if is_sdxl:
    return {"force_zeros_for_empty_prompt": is_zeros}
  if is_zeros:
    raise ConfigError(
      "the unconditional input is zeros (null='zeros'), which only SDXL's "
      "files can say; needed: null='empty'"
    )
  return {}


def scheduler_of(
  model: LatentDiffusion, scheduler: Mapping[str, Any] | None
) -> dict[str, Any]:
  """scheduler_config.json: the model's process and a sampler.

  Args:
    scheduler: the sampler's; None for that of the model's family, or DDIM.

  Raises:
    ConfigError: it is of another process, or no scheduler is of the model's.
  """
  if scheduler is None and isinstance(model.unet, MMDiT):
    scheduler = SCHEDULER
  if scheduler is None and isinstance(model.unet, Flux):
    scheduler = flux_folder.scheduler(model.unet.embeds_guidance)
  return scheduler_config.schedule_config(
    model.schedule, model.prediction, scheduler
  )


def old_names(kind: str) -> dict[str, str]:
  """The names by which LDM's pipelines call components of other names."""
  if kind == "LDMPipeline":
    return {"vae": "vqvae"}
  if kind == "LDMTextToImagePipeline":
    return {"vae": "vqvae", "text_encoder": "bert"}
  return {}


def pipeline(model: LatentDiffusion, channels: int) -> str:
  """The class of diffusers that samples from such a model.

  Args:
    channels: input channels of its U-Net.

  Raises:
    ConfigError: diffusers has none for such a model.
  """
  if isinstance(model.unet, DiT):
    return "DiTPipeline"
  if isinstance(model.unet, MMDiT):
    return SD3_PIPELINE
  if isinstance(model.unet, Flux):
    return flux_folder.pipeline(model, channels)
  kinds = {type(conditioner) for conditioner in model.conditioners}
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
  is_editing = SourceImage in kinds and channels == 2 * latents
  if channels not in (latents, 2 * latents + 1) and not is_editing:
    raise ConfigError(
      f"diffusers has no text pipeline for a U-Net that reads {channels} "
      f"channels with latents of {latents}; write a single file instead, or "
      "the U-Net and the autoencoder by themselves"
    )
  middle = "InstructPix2Pix" if is_editing else ""
  middle = "Inpaint" if channels == 2 * latents + 1 else middle
  sizes = [c for c in model.conditioners if isinstance(c, SizeEmbedder)]
  if not sizes:
    return f"StableDiffusion{middle}Pipeline"
  is_refiner = sizes[0].ends_with == "score"
  middle = middle or "Img2Img" * is_refiner
  return f"StableDiffusionXL{middle}Pipeline"


def text_encoder_folders(model: LatentDiffusion) -> list[str]:
  """Subfolders of the text encoders; SDXL's refiner has only a second one."""
  if (found := subfolders(model)) is not None:
    return found
  names = ["text_encoder", "text_encoder_2"]
  for conditioner in model.conditioners:
    if isinstance(conditioner, ClassEmbedder):
      return ["class_embedder"]
    is_size = isinstance(conditioner, SizeEmbedder)
    if is_size and conditioner.ends_with == "score":
      return names[1:]
  clips = [c for c in model.conditioners if isinstance(c, ClipEmbedder)]
  if clips:
    return names[: len(clips[0].encoders)]
  return names[:1] if model.conditioners else []


def tokenizers(
  model: LatentDiffusion,
  tokenizer: ClipPrompts | Tokenizer | None,
  t5_tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
  """The library's tokenizers, by their subfolders."""
  if isinstance(tokenizer, Tokenizer):
    return {"tokenizer": tokenizer.backend}
  names = [
    name.replace("text_encoder", "tokenizer")
    for name in text_encoder_folders(model)
  ]
  found = {}
  if t5_tokenizer is not None:
    found[names.pop()] = t5_tokenizer.backend
  if tokenizer is None:
    return found
  each = [syntax.tokenizer.backend for syntax in tokenizer.syntaxes]
  return dict(zip(names, each, strict=False)) | found


def model_card(listed: dict[str, Any]) -> str:
  """README.md for the hub."""
  kind = listed["_class_name"]
  tags = [*_TAGS, "text-to-image"] if "text_encoder" in listed else list(_TAGS)
  return _CARD.format(tags="\n".join(f"- {tag}" for tag in tags), kind=kind)
