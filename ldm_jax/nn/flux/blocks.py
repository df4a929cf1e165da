"""The two kinds of blocks of FLUX.1, modulated by time, text and guidance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.attention import AttentionBackend, dot_product_attention
from ldm_jax.nn.dit.blocks import linear, modulated
from ldm_jax.nn.flux.positions import rotate_pairs
from ldm_jax.nn.initializers import xavier
from ldm_jax.nn.operators.rows import on_rows

EPSILON = 1e-6  # of all norms


class Heads(nn.Module):
  """Queries, keys and values of tokens, by head.

  Queries and keys are divided by their root mean square, times a learned scale
  (Dehghani et al. 2023, section 2).
  """

  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l d"]
  ) -> tuple[
    Float[Array, "b l n e"], Float[Array, "b l n e"], Float[Array, "b l n e"]
  ]:
    b, length, width = x.shape

    def project(name: str) -> Array:
      tokens = linear(x, width, name=name, dtype=self.dtype)
      return tokens.reshape(b, length, self.heads, width // self.heads)

    def normed(name: str) -> Array:
      norm = nn.RMSNorm(epsilon=EPSILON, dtype=jnp.float32, name=f"{name}_norm")
      return norm(project(name)).astype(self.dtype)

    return normed("q"), normed("k"), project("v")


def attend(
  heads: tuple[Array, Array, Array],
  cos_sin: Float[Array, "2 l half"],
  backend: AttentionBackend,
) -> Float[Array, "b l d"]:
  """Attention of rotated queries and keys, heads concatenated."""
  q, k, v = heads
  q, k = rotate_pairs(q, cos_sin), rotate_pairs(k, cos_sin)
  out = dot_product_attention(q, k, v, backend)
  return out.reshape(*out.shape[:2], -1)


class Stream(nn.Module):
  """What a `DoubleBlock` computes of one sequence, before and after attention.

  Attributes:
    width: features of a token.
  """

  width: int
  heads: int
  dtype: DTypeLike = "float32"

  def setup(self):
    init = {"kernel_init": xavier}
    zero = {"kernel_init": nn.initializers.zeros}
    self.modulation = nn.Dense(6 * self.width, dtype="float32", **zero)
    self.attention = Heads(self.heads, self.dtype)
    self.out = nn.Dense(self.width, dtype=self.dtype, **init)
    self.up = nn.Dense(4 * self.width, dtype=self.dtype, **init)
    self.down = nn.Dense(self.width, dtype=self.dtype, **init)

  def project(
    self, x: Float[Array, "b l d"], emb: Float[Array, "b d"]
  ) -> tuple[tuple[Array, Array, Array], list[Array]]:
    """(queries, keys and values), and what `finish` takes."""
    parts = jnp.split(self.modulation(jax.nn.silu(emb)), 6, axis=-1)
    shift, scale, *rest = parts
    return self.attention(self._normed(x, shift, scale)), rest

  def finish(
    self, x: Float[Array, "b l d"], attended: Array, rest: list[Array]
  ) -> Float[Array, "b l d"]:
    """x + gate attention, then x + gate MLP(adaLN x)."""
    gate1, shift, scale, gate2 = rest
    x = x + self._gated(on_rows(self.out, attended), gate1)
    h = on_rows(self.up, self._normed(x, shift, scale))
    h = on_rows(self.down, jax.nn.gelu(h, approximate=True))
    return x + self._gated(h, gate2)

  def _normed(self, x: Array, shift: Array, scale: Array) -> Array:
    return modulated(x, shift, scale, "layer", EPSILON).astype(self.dtype)

  def _gated(self, h: Array, gate: Array) -> Array:
    return (h * gate[:, None]).astype(self.dtype)


class DoubleBlock(nn.Module):
  """Text and patches with weights of their own, joined in attention.

  MMDiT's block (Esser et al. 2024, figure 2b): of each sequence
  x + gate attention(adaLN x), then x + gate MLP(adaLN x).
  """

  heads: int
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    sequences: tuple[Float[Array, "b m d"], Float[Array, "b l d"]],
    emb: Float[Array, "b d"],
    cos_sin: Float[Array, "2 k half"],
  ) -> tuple[Float[Array, "b m d"], Float[Array, "b l d"]]:
    """The next (text, patches).

    Args:
      emb: embedding of time, pooled text and guidance, float32.
      cos_sin: see `rotary_cos_sin`.
    """
    text, patches = sequences
    own = emb.shape[-1], self.heads, self.dtype
    of_text, of_image = Stream(*own, name="text"), Stream(*own, name="image")
    text_heads, text_rest = of_text.project(text, emb)
    image_heads, image_rest = of_image.project(patches, emb)
    pairs = zip(text_heads, image_heads, strict=True)
    joined = tuple(jnp.concatenate(pair, axis=1) for pair in pairs)
    out = attend(joined, cos_sin, self.attention_backend)
    length = text.shape[1]
    return (
      of_text.finish(text, out[:, :length], text_rest),
      of_image.finish(patches, out[:, length:], image_rest),
    )


class SingleBlock(nn.Module):
  """x + gate W [attention(adaLN x) | gelu(W1 adaLN x)].

  Attention and MLP side by side (Dehghani et al. 2023, section 2), on text and
  patches as one sequence.
  """

  heads: int
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    emb: Float[Array, "b d"],
    cos_sin: Float[Array, "2 l half"],
  ) -> Float[Array, "b l d"]:
    """The next tokens; see `DoubleBlock`."""
    width, dtype = x.shape[-1], self.dtype
    parameters = linear(
      jax.nn.silu(emb),
      3 * width,
      name="modulation",
      dtype="float32",
      kernel_init=nn.initializers.zeros,
    )
    shift, scale, gate = jnp.split(parameters, 3, axis=-1)
    h = modulated(x, shift, scale, "layer", EPSILON).astype(dtype)
    heads = Heads(self.heads, dtype, name="attention")(h)
    attended = attend(heads, cos_sin, self.attention_backend)
    h = jax.nn.gelu(linear(h, 4 * width, name="up", dtype=dtype), True)
    h = jnp.concatenate([attended, h], axis=-1)
    h = linear(h, width, name="out", dtype=dtype)
    return x + (h * gate[:, None]).astype(dtype)
