"""Prefixes of the networks of a single file that is written."""

from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.deep_compression.autoencoder import DCAutoencoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.pretrained.dit.folder import NAME as TRANSFORMER
from ldm_jax.pretrained.flux import detect_file as flux_file
from ldm_jax.pretrained.mmdit.detect_file import TEXTS
from ldm_jax.pretrained.model_index import text_encoder_folders


def written_prefixes(model: LatentDiffusion) -> dict[str, tuple[str, str]]:
  """(prefix, kind) of each network of a single file, by its subfolder."""
  is_dc = isinstance(model.first_stage, DCAutoencoder)
  kind = "dc_autoencoder" if is_dc else "autoencoder"
  found = {
    "unet": ("model.diffusion_model.", "unet"),
    "vae": ("first_stage_model.", kind),
  }
  if isinstance(model.unet, MMDiT):
    found[TRANSFORMER] = (found.pop("unet")[0], "mmdit")
    kinds = ("clip", "clip", "t5")
    texts = zip(TEXTS.items(), kinds, strict=True)
    return found | {name: (start, kind) for (name, start), kind in texts}
  if isinstance(model.unet, Flux):
    starts, kinds = flux_file.TEXTS, ("clip", "t5")
    texts = zip(starts.items(), kinds, strict=True)
    return {
      TRANSFORMER: (flux_file.UNET, "flux"),
      "vae": (flux_file.VAE, kind),
      **{name: (start, kind) for (name, start), kind in texts},
    }
  is_sdxl = any(isinstance(c, SizeEmbedder) for c in model.conditioners)
  for conditioner in model.conditioners:
    if isinstance(conditioner, ClassEmbedder):
      found["class_embedder"] = ("cond_stage_model.", "classes")
    elif isinstance(conditioner, TextEmbedder):
      found["text_encoder"] = ("cond_stage_model.", "text")
    elif isinstance(conditioner, ClipEmbedder):
      names = text_encoder_folders(model)
      encoders = _clip_prefixes(conditioner, is_sdxl)
      found |= dict(zip(names, encoders, strict=True))
  return found


def _clip_prefixes(
  embedder: ClipEmbedder, is_sdxl: bool
) -> list[tuple[str, str]]:
  """OpenAI's encoders have transformers' names, OpenCLIP's their own."""
  found = []
  for i, encoder in enumerate(embedder.encoders):
    is_open = encoder.activation == "gelu"
    start = f"conditioner.embedders.{i}." if is_sdxl else "cond_stage_model."
    found.append(
      (f"{start}model.", "open_clip")
      if is_open
      else (f"{start}transformer.text_model.", "clip")
    )
  return found
