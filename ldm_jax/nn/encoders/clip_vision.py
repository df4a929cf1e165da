"""The image encoder of CLIP."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.encoders.clip_text import Activation, ClipBlock
from ldm_jax.nn.initializers import torch_init
from ldm_jax.nn.layers import dense, layer_norm

# Of the images that OpenAI's encoders were trained on, in [0, 1]; by channel.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipVision(nn.Module):
  """A transformer over an image's patches  (Radford et al. 2021, 2.4).

  A class token comes before the patches; its last state, normalised and
  projected, is the image's embedding. The defaults are ViT-L/14's, on whose
  embeddings retrieval-augmented diffusion is conditioned.

  Attributes:
    size: pixels of a side.
    patch: pixels of a patch's side.
    hidden: features inside the feed-forward; None is four times the width.
    projection: features of the embedding.

  Raises:
    ValueError: at construction, if the width does not divide into the heads or
      the side into patches.
  """

  size: int = 224
  patch: int = 14
  width: int = 1024
  depth: int = 24
  heads: int = 16
  hidden: int | None = None
  activation: Activation = "quick_gelu"
  projection: int = 768
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.heads or self.size % self.patch:
      raise ValueError(
        f"width {self.width} must divide into {self.heads} heads, and size "
        f"{self.size} into patches of {self.patch}"
      )

  @nn.compact
  def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b p"]:
    """Embeddings of images in [-1, 1], of length 1."""
    pixels = ((images + 1) / 2 - jnp.array(MEAN)) / jnp.array(STD)
    window = (self.patch, self.patch)
    patches = nn.Conv(
      self.width,
      window,
      window,
      padding="VALID",
      use_bias=False,
      dtype=self.dtype,
      kernel_init=torch_init(3 * self.patch**2)["kernel_init"],
      name="patches",
    )(pixels)
    tokens = patches.reshape(len(images), -1, self.width)
    normal = nn.initializers.normal(0.02)
    first = self.param("class", normal, (self.width,))
    first = jnp.broadcast_to(first, (len(images), 1, self.width))
    x = jnp.concatenate([first.astype(tokens.dtype), tokens], axis=1)
    x = x + self.param("positions", normal, x.shape[1:])
    x = layer_norm(x, name="norm_in", dtype=self.dtype)
    for i in range(self.depth):
      x = ClipBlock(
        self.heads,
        self.hidden or 4 * self.width,
        self.activation,
        self.attention_backend,
        self.dtype,
        is_causal=False,
        name=f"block_{i}",
      )(x)
    pooled = layer_norm(x[:, 0], name="norm", dtype="float32")
    embedding = dense(
      pooled,
      self.projection,
      name="projection",
      use_bias=False,
      dtype=self.dtype,
    ).astype(jnp.float32)
    return embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
