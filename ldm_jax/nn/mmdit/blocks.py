"""The block of MMDiT: two streams of tokens with one attention over both."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.attention import AttentionBackend, dot_product_attention
from ldm_jax.nn.dit.blocks import linear, modulated
from ldm_jax.nn.initializers import xavier
from ldm_jax.nn.operators.rows import on_rows

EPSILON = 1e-6  # of all norms


class StreamAttention(nn.Module):
  """One stream's queries, keys, values and output of an attention.

  Attributes:
    is_qk_normed: queries and keys are divided by their root mean square, times
      a learned scale (Esser et al. 2024, section 5.3.2).
    has_output: whether the attended tokens of this stream are used.
  """

  width: int
  heads: int
  is_qk_normed: bool
  has_output: bool = True
  dtype: DTypeLike = "float32"

  def setup(self):
    dense = lambda: nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier)
    self.q, self.k, self.v = dense(), dense(), dense()
    if self.is_qk_normed:
      norm = lambda: nn.RMSNorm(epsilon=EPSILON, dtype=jnp.float32)
      self.q_norm, self.k_norm = norm(), norm()
    if self.has_output:
      self.out = dense()

  def project(
    self, x: Float[Array, "b l d"]
  ) -> tuple[
    Float[Array, "b l n e"], Float[Array, "b l n e"], Float[Array, "b l n e"]
  ]:
    """Queries, keys and values of `heads` heads."""
    b, length, width = x.shape
    shape = b, length, self.heads, width // self.heads
    layers = self.q, self.k, self.v
    q, k, v = (on_rows(layer, x).reshape(shape) for layer in layers)
    if self.is_qk_normed:
      q = self.q_norm(q).astype(self.dtype)
      k = self.k_norm(k).astype(self.dtype)
    return q, k, v

  def output(self, attended: Float[Array, "b l n e"]) -> Float[Array, "b l d"]:
    """The heads' results times one matrix."""
    b, length, *_ = attended.shape
    return on_rows(self.out, attended.reshape(b, length, self.width))


class StreamFeedForward(nn.Module):
  """W2 gelu(W1 x) on every token of a stream, by tanh."""

  hidden: int
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    h = linear(x, self.hidden, name="up", dtype=self.dtype)
    h = jax.nn.gelu(h, approximate=True)
    return linear(h, x.shape[-1], name="down", dtype=self.dtype)


class JointBlock(nn.Module):
  """x + gate attention(adaLN [x, c]), then x + gate MLP(adaLN x); c likewise.

  Esser et al. 2024, figure 2: image tokens x and text tokens c have matrices,
  shifts, scales and gates of their own. Those are one matrix of
  silu(condition), which starts at zero: a new block is the identity.

  Attributes:
    hidden: features inside the MLPs.
    is_dual: the image tokens also attend to themselves alone (SD 3.5 medium).
    is_last: the text tokens end here: they are attended to, and not updated.
    is_qk_normed: see `StreamAttention`.
  """

  heads: int
  hidden: int
  is_dual: bool = False
  is_last: bool = False
  is_qk_normed: bool = False
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    context: Float[Array, "b m d"],
    condition: Float[Array, "b d"],
  ) -> tuple[Float[Array, "b l d"], Float[Array, "b m d"]]:
    """The next image and text tokens.

    Args:
      condition: embedding of time and pooled text, float32.
    """
    condition = jax.nn.silu(condition)
    count = 9 if self.is_dual else 6
    of_image = self.modulation(condition, count, "image_modulation")
    shift, scale, gate, *rest = of_image
    normed = self.normed(x, shift, scale)
    if self.is_last:
      parts = [
        self.modulation(condition, 1, f"context_{n}")[0]
        for n in ("shift", "scale")
      ]
      normed_context = self.normed(context, *parts)
    else:
      of_text = self.modulation(condition, 6, "context_modulation")
      normed_context = self.normed(context, *of_text[:2])
    attended, attended_context = self.joint_attention(normed, normed_context)
    if self.is_dual:
      shift, scale, gate2 = rest[3:]
      alone = self.self_attention(self.normed(x, shift, scale))
      x = x + self.gated(attended, gate) + self.gated(alone, gate2)
    else:
      x = x + self.gated(attended, gate)
    x = self.feed_forward(x, rest[:3], "image_mlp")
    if self.is_last:
      return x, context
    context = context + self.gated(attended_context, of_text[2])
    return x, self.feed_forward(context, of_text[3:], "context_mlp")

  def modulation(self, condition: Array, count: int, name: str) -> list[Array]:
    """`count` vectors of silu(condition), zero at first."""
    parameters = linear(
      condition,
      count * condition.shape[-1],
      name=name,
      dtype="float32",
      kernel_init=nn.initializers.zeros,
    )
    return jnp.split(parameters, count, -1)

  def normed(self, x: Array, shift: Array, scale: Array) -> Array:
    """adaLN in float32, in the format of computation."""
    return modulated(x, shift, scale, "layer", EPSILON).astype(self.dtype)

  def gated(self, h: Array, gate: Array) -> Array:
    """gate h, in float32, in the format of computation."""
    return (h * gate[:, None]).astype(self.dtype)

  def stream(self, width: int, name: str, has_output: bool = True) -> nn.Module:
    """The attention's layers of one stream."""
    return StreamAttention(
      width, self.heads, self.is_qk_normed, has_output, self.dtype, name=name
    )

  def joint_attention(
    self, x: Array, context: Array
  ) -> tuple[Array, Array | None]:
    """All tokens attend to all tokens of both streams."""
    image = self.stream(x.shape[-1], "image")
    text = self.stream(x.shape[-1], "context", not self.is_last)
    both = zip(image.project(x), text.project(context), strict=True)
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in both)
    if self.is_last:  # nobody reads the texts' results
      q = q[:, : x.shape[1]]
    out = dot_product_attention(q, k, v, self.attention_backend)
    attended = image.output(out[:, : x.shape[1]])
    if self.is_last:
      return attended, None
    return attended, text.output(out[:, x.shape[1] :])

  def self_attention(self, x: Array) -> Array:
    """Image tokens attend to image tokens."""
    layers = self.stream(x.shape[-1], "image_alone")
    out = dot_product_attention(*layers.project(x), self.attention_backend)
    return layers.output(out)

  def feed_forward(self, x: Array, parts: list[Array], name: str) -> Array:
    """x + gate MLP(adaLN x)."""
    shift, scale, gate = parts
    h = self.normed(x, shift, scale)
    layers = StreamFeedForward(self.hidden, self.dtype, name=name)
    return x + self.gated(layers(h), gate)
