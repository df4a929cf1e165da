"""The text encoders of CLIP and OpenCLIP, as in Stable Diffusion."""

import functools
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.layers import dense, layer_norm
from ldm_jax.nn.transformer import Attention

Activation = Literal["quick_gelu", "gelu"]

# OpenAI's encoders have the first, OpenCLIP's the second.
_ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@flax.struct.dataclass
class ClipOutput:
  """The output of a text encoder.

  Attributes:
    context: [b l d], a state for every token.
    pooled: [b p], one vector for the text.
  """

  # Any: as a tree it carries shapes and shardings as well as arrays.
  context: Any
  pooled: Any


class ClipBlock(nn.Module):
  """x + attention(norm x), then x + feed-forward(norm x)."""

  heads: int
  hidden: int
  activation: Activation
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"
  is_causal: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    width = x.shape[-1]
    attention = Attention(
      self.heads,
      width // self.heads,
      self.attention_backend,
      self.dtype,
      is_causal=self.is_causal,
      is_biased=True,
      name="attention",
    )
    x = x + attention(layer_norm(x, name="norm1", dtype=self.dtype))
    h = layer_norm(x, name="norm2", dtype=self.dtype)
    h = dense(h, self.hidden, name="up", dtype=self.dtype)
    h = _ACTIVATIONS[self.activation](h)
    return x + dense(h, width, name="down", dtype=self.dtype)


class ClipText(nn.Module):
  """A causal transformer over a text's tokens  (Radford et al. 2021, 2.4).

  The defaults are CLIP ViT-L/14's text encoder, that of SD 1. OpenCLIP's ViT-H
  (SD 2) has width 1024, depth 24 and 16 heads, its ViT-bigG (SDXL) width 1280,
  depth 32, 20 heads and a projection to 1280, both of them "gelu".

  Attributes:
    length: the largest number of tokens, and of learned positions.
    hidden: features inside the feed-forward; None is four times the width.
    activation: "quick_gelu" is x sigmoid(1.702 x), "gelu" the exact one.
    projection: features of the pooled vector after a matrix without bias;
      None leaves it as it is.
    end: the id at whose first occurrence the text is pooled; at the first
      token if there is none. None pools at the largest id, which is the end
      token unless ids were added after it.
    dtype: of computation; norms, softmax and the output stay float32.

  Raises:
    ValueError: at construction, if the width does not divide into the heads.
  """

  vocabulary: Count = 49408
  width: Count = 768
  depth: Natural = 12
  heads: Count = 12
  length: Count = 77
  hidden: Count | None = None
  activation: Activation = "quick_gelu"
  projection: Count | None = None
  end: Natural | None = None
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.heads:
      raise ValueError(
        f"width {self.width} does not divide into {self.heads} heads; set "
        "`heads` to a divisor of the width"
      )

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b l"],
    skip: int = 0,
    is_normed: bool = True,
  ) -> ClipOutput:
    """The state after depth - skip blocks, and the text in one vector.

    Args:
      skip: how many of the last blocks the context skips.
      is_normed: whether the final norm is applied to the context. The pooled
        vector is always of the last block, with that norm.

    Raises:
      ValueError: `skip` leaves no block, or there are more tokens than
        positions.
    """
    if not 0 <= skip < self.depth:
      raise ValueError(
        f"cannot skip {skip} of {self.depth} blocks; `skip` must be from 0 to "
        f"{self.depth - 1}"
      )
    x = context = self.embed(tokens)
    for i in range(self.depth):
      x = self.block(i)(x)
      context = x if i < self.depth - skip else context
    last = x[jnp.arange(x.shape[0]), self.pooling_positions(tokens)]
    rows = jnp.concatenate([context, last[:, None]], axis=1)
    rows = layer_norm(rows, name="norm", dtype="float32")
    return ClipOutput(
      rows[:, :-1] if is_normed else context.astype(jnp.float32),
      self.project(rows[:, -1]),
    )

  def embed(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Each token's row of the table plus its position's."""
    count = tokens.shape[1]
    if count > self.length:
      raise ValueError(
        f"{count} tokens, but the text encoder has {self.length} positions; "
        f"cut the prompt into chunks of {self.length}"
      )
    normal = nn.initializers.normal
    table = nn.Embed(
      self.vocabulary, self.width, embedding_init=normal(0.02), name="tokens"
    )
    shape = (self.length, self.width)
    positions = self.param("positions", normal(0.01), shape)
    return (table(tokens) + positions[:count]).astype(self.dtype)

  def block(self, i: int) -> ClipBlock:
    """The i-th block."""
    return ClipBlock(
      self.heads,
      self.hidden or 4 * self.width,
      self.activation,
      self.attention_backend,
      self.dtype,
      name=f"block_{i}",
    )

  def pooling_positions(self, tokens: Int[Array, "b l"]) -> Int[Array, " b"]:
    """The token at which each text is pooled."""
    return (tokens if self.end is None else tokens == self.end).argmax(1)

  def project(self, pooled: Float[Array, "b d"]) -> Float[Array, "b p"]:
    """`pooled` times the projection, if there is one."""
    if self.projection is None:
      return pooled
    pooled = dense(
      pooled,
      self.projection,
      name="projection",
      use_bias=False,
      dtype=self.dtype,
    )
    return pooled.astype(jnp.float32)
