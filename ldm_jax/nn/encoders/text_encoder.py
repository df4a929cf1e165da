"""A text encoder over token ids, trained with the U-Net."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.layers import dense, layer_norm
from ldm_jax.nn.transformer import Attention


class TextEncoder(nn.Module):
  """LDM's BERT-like encoder, trained from scratch with the U-Net.

  Rombach et al. 2022, appendix E.2.1: learned positions, pre-norm blocks whose
  attention has heads * head_width = 512 features whatever the width, a gelu
  feed-forward four times as wide, a final norm, and no padding mask. LDM's are
  of width 640 or 1280, depth 32 and vocabulary 30,522.

  A new one is a bag of tokens: token embeddings are initialised as
  torch.nn.Embedding's, far larger than positions, and every block starts by
  adding nothing. The U-Net then learns from single tokens, several times
  faster.

  Attributes:
    length: the largest number of tokens, and of learned positions.
  """

  vocabulary: Count
  width: Count = 1280
  depth: Natural = 32
  heads: Count = 8
  head_width: Count = 64
  length: Count = 77
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    count = tokens.shape[1]
    if count > self.length:
      raise ValueError(
        f"{count} tokens, but the text encoder has {self.length} positions; "
        "shorten the tokenizer's `length` or raise the encoder's"
      )
    normal = nn.initializers.normal
    table = nn.Embed(
      self.vocabulary, self.width, embedding_init=normal(1.0), name="tokens"
    )
    shape = (self.length, self.width)
    positions = self.param("positions", normal(0.02), shape)
    x = (table(tokens) + positions[:count]).astype(self.dtype)
    for i in range(self.depth):
      x = self.block(x, i)
    x = layer_norm(x, name="norm", dtype=self.dtype)
    return x.astype(jnp.float32)

  def block(self, x: Array, i: int) -> Array:
    """x + attention(norm x), then x + feed-forward(norm x)."""
    attention = Attention(
      self.heads,
      self.head_width,
      self.attention_backend,
      self.dtype,
      is_zero=True,
      name=f"attention_{i}",
    )
    norm = lambda name: layer_norm(x, name=f"{name}_{i}", dtype=self.dtype)
    x = x + attention(norm("norm1"))
    h = dense(norm("norm2"), 4 * self.width, name=f"up_{i}", dtype=self.dtype)
    h = jax.nn.gelu(h, approximate=False)
    name = f"down_{i}"
    return x + dense(h, self.width, name=name, is_zero=True, dtype=self.dtype)
