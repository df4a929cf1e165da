"""A DiT with its conditioner as diffusers' transformer."""

from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.pretrained.dit.dit_config import dit_config

NAME = "transformer"  # its subfolder


def label_embedder(model: LatentDiffusion) -> ClassEmbedder:
  """The conditioner that becomes the table of labels inside the network.

  Raises:
    ConfigError: the model has another conditioner, or none.
  """
  found = model.conditioners
  is_one = len(found) == 1 and isinstance(found[0], ClassEmbedder)
  if not is_one or found[0].joins != "vector":
    kinds = ", ".join(type(c).__name__ for c in found) or "none"
    raise ConfigError(
      "diffusers' DiTPipeline holds a DiT with one conditioner, a "
      f"ClassEmbedder with joins='vector'; this model's are: {kinds}"
    )
  return found[0]


def transformer_config(model: LatentDiffusion, side: int) -> dict[str, Any]:
  """config.json of the model's transformer.

  Args:
    side: of the latents it was trained on.

  Raises:
    ConfigError: diffusers has no class that computes the same.
  """
  return dit_config(model.unet, label_embedder(model).classes, side)
