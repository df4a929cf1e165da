"""CLIP's image and text encoders: embeddings and CLIP score.

CLIP score is 100 max(cos, 0) of an image's embedding and its caption's
(Hessel et al. 2021, with torchmetrics' factor).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.networks import class_of, load

WHOLE = "CLIPModel"

# What to look for, since nothing is downloaded.
SOURCE = (
  "a folder of transformers' CLIPModel with its tokenizer, such as "
  "openai/clip-vit-large-patch14-336 (model.safetensors, 1.7 GB)"
)


@dataclasses.dataclass(frozen=True)
class ClipScorer:
  """An image and a text encoder with one embedding space, and variables."""

  vision: ClipVision
  text: ClipText
  tokenizer: Tokenizer
  variables: dict[str, Any]

  def image_embeddings(
    self, variables: Any, images: UInt8[Array, "b s s 3"]
  ) -> Float[Array, "b p"]:
    """Embeddings, of length 1, of images of the encoder's size."""
    return self.vision.apply(variables["vision"], to_float(images))

  def text_embeddings(
    self, variables: Any, ids: Int[Array, "b l"]
  ) -> Float[Array, "b p"]:
    """Embeddings of texts, of length 1."""
    rows = self.text.apply(variables["text"], ids).pooled
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def open_clip(folder: str) -> ClipScorer:
  """The encoders and the tokenizer of a CLIPModel's folder.

  Raises:
    ConfigError: it is not such a folder.
    WeightsError: its weights are missing, malformed or of another network.
  """
  found = open_network(folder)
  if class_of(found.config) != WHOLE:
    raise ConfigError(
      f"{folder} is a {class_of(found.config)}; expected {SOURCE}"
    )
  vision, image_variables = load(found)
  config = {
    **found.config.get("text_config", {}),
    "architectures": ["CLIPTextModelWithProjection"],
    "projection_dim": vision.projection,
  }
  text, text_variables = load(open_network(folder, config=config))
  return ClipScorer(
    vision,
    text,
    tokenizers.load(folder, text.length),
    {"vision": image_variables, "text": text_variables},
  )


def clip_scores(
  images: Float[Array, "b p"], texts: Float[Array, "b p"]
) -> Float[Array, " b"]:
  """The CLIP score of each pair of embeddings of length 1."""
  return 100 * jnp.maximum((images * texts).sum(-1), 0)
