"""Both towers of a CLIP: how well words fit a picture, and pictures' likeness.

CLIP score is 100 max(cos, 0) of a picture's embedding and its caption's
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
  """Two towers that share a space, with their variables."""

  vision: ClipVision
  text: ClipText
  tokenizer: Tokenizer
  variables: dict[str, Any]

  def seen(
    self, variables: Any, images: UInt8[Array, "b s s 3"]
  ) -> Float[Array, "b p"]:
    """Embeddings of pictures of the tower's size, of length 1."""
    return self.vision.apply(variables["vision"], to_float(images))

  def read(self, variables: Any, ids: Int[Array, "b l"]) -> Float[Array, "b p"]:
    """Embeddings of texts, of length 1."""
    rows = self.text.apply(variables["text"], ids).pooled
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def open_clip(folder: str) -> ClipScorer:
  """Both towers and the tokenizer of one folder.

  Raises:
    ConfigError: it is no such folder.
    WeightsError: its weights are not what they should be.
  """
  found = open_network(folder)
  if class_of(found.config) != WHOLE:
    raise ConfigError(
      f"{folder} is a {class_of(found.config)}; needed is {SOURCE}"
    )
  vision, eyes = load(found)
  config = {
    **found.config.get("text_config", {}),
    "architectures": ["CLIPTextModelWithProjection"],
    "projection_dim": vision.projection,
  }
  text, ears = load(open_network(folder, config=config))
  words = tokenizers.load(folder, text.length)
  return ClipScorer(vision, text, words, {"vision": eyes, "text": ears})


def clip_scores(
  seen: Float[Array, "b p"], read: Float[Array, "b p"]
) -> Float[Array, " b"]:
  """Of pairs of embeddings of length 1."""
  return 100 * jnp.maximum((seen * read).sum(-1), 0)
