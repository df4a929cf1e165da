"""Attention blocks: over pixels alone, or over pixels and a context."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.attention import AttentionBackend, dot_product_attention
from ldm_jax.nn.layers import (
  Remat,
  conv,
  dense,
  group_norm,
  layer_norm,
  remat_policy,
)


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
  """The attention layers of a U-Net.

  Attributes:
    depths: transformer blocks per level, finest first; 0 is no attention.
    mid_depth: transformer blocks in the middle.
    heads: number of heads at every level, or None if their width is fixed.
    head_width: features of a head, or None if their number is fixed.
    kind: "transformer" attends to pixels and to a context, "plain" to pixels
      only.
    is_linear: project by matrices, not 1 x 1 convolutions (SD 2, SDXL).
    cross_only: per level, whether self-attention is cross-attention to the
      context instead; empty is nowhere. The middle never has it.
    is_scanned: one scan over a level's blocks; see `SpatialTransformer`.
  """

  depths: tuple[Natural, ...] = (1, 1, 1, 0)
  mid_depth: Natural = 1
  heads: Count | None = 8
  head_width: Count | None = None
  kind: Literal["transformer", "plain"] = "transformer"
  is_linear: bool = False
  cross_only: tuple[bool, ...] = ()
  is_scanned: bool = False

  def __post_init__(self):
    if (self.heads is None) == (self.head_width is None):
      raise ValueError(
        "set exactly one of heads (their number) and head_width, got "
        f"heads={self.heads} head_width={self.head_width}"
      )
    if self.cross_only and len(self.cross_only) != len(self.depths):
      raise ValueError(
        f"cross_only has {len(self.cross_only)} levels, depths has "
        f"{len(self.depths)}; give one per level or leave it empty"
      )

  def split(self, channels: int) -> tuple[int, int]:
    """(heads, head width) of a level of `channels`.

    Raises:
      ValueError: if they do not divide.
    """
    count = self.heads or channels // self.head_width
    if count == 0 or channels % count:
      raise ValueError(
        f"{channels} channels do not divide into heads={self.heads} "
        f"head_width={self.head_width}"
      )
    return count, channels // count


class Attention(nn.Module):
  """Multi-head attention from x to `context`, or to x itself.

  Projects to heads * head_width, whatever the width of x.

  Attributes:
    is_zero: initialise the output at 0.
    is_causal: token i of x attends to tokens 0 to i of the source.
    is_biased: q, k and v have a bias; the output always has one.
  """

  heads: int
  head_width: int
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"
  is_zero: bool = False
  is_causal: bool = False
  is_biased: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l c"],
    context: Float[Array, "b m d"] | None = None,
  ) -> Float[Array, "b l c"]:
    source = x if context is None else context
    inner = self.heads * self.head_width
    project = functools.partial(
      dense, features=inner, use_bias=self.is_biased, dtype=self.dtype
    )
    q, k, v = (
      project(tokens, name=name).reshape(
        *tokens.shape[:2], self.heads, self.head_width
      )
      for name, tokens in (("q", x), ("k", source), ("v", source))
    )
    out = dot_product_attention(
      q, k, v, self.attention_backend, is_causal=self.is_causal
    )
    out = out.reshape(*x.shape[:2], inner)
    return dense(
      out, x.shape[-1], name="out", is_zero=self.is_zero, dtype=self.dtype
    )


class GatedFeedForward(nn.Module):
  """(x A) * gelu(x B), then back to the width of x  (Shazeer 2020, eq. 6)."""

  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
    width = x.shape[-1]
    h = dense(x, 8 * width, name="up", dtype=self.dtype)
    value, gate = jnp.split(h, 2, axis=-1)
    h = value * jax.nn.gelu(gate, approximate=False)
    return dense(h, width, name="down", dtype=self.dtype)


class TransformerBlock(nn.Module):
  """Self-attention, cross-attention, feed-forward, each after a norm.

  Attributes:
    is_cross_only: the first attention too is over the context (the x4
      upscaler's `disable_self_attn`).
  """

  heads: int
  head_width: int
  is_cross_only: bool = False
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l c"],
    context: Float[Array, "b m d"] | None,
  ) -> Float[Array, "b l c"]:
    def attention(name):
      return Attention(
        self.heads,
        self.head_width,
        self.attention_backend,
        self.dtype,
        name=name,
      )

    first = context if self.is_cross_only else None
    norm = lambda x, name: layer_norm(x, name=name, dtype=self.dtype)
    x = x + attention("attention1")(norm(x, "norm1"), first)
    x = x + attention("attention2")(norm(x, "norm2"), context)
    return x + GatedFeedForward(self.dtype, name="ff")(norm(x, "norm3"))


class SpatialTransformer(nn.Module):
  """Pixels as tokens through `depth` transformer blocks, with a residual.

  Rombach et al. 2022, section 3.3 and appendix E.2.1. The last projection is
  initialised at zero, so a new block is the identity.

  Attributes:
    depth: number of transformer blocks.
    is_linear: project by a matrix on tokens (SD 2 and SDXL) or by a 1 x 1
      convolution on pixels (LDM, SD 1): the same numbers, stored differently.
    is_scanned: one scan over the blocks in place of `depth` copies of the
      code: it compiles faster, and only one block's parameters need be
      gathered at a time. Parameters are stacked for it, but stored and named as
      without it.
    remat: rematerialisation of each of several blocks; see `remat_policy`.
  """

  depth: int
  heads: int
  head_width: int
  is_linear: bool = False
  is_cross_only: bool = False
  groups: int = 32
  is_scanned: bool = False
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    context: Float[Array, "b m d"] | None,
  ) -> Float[Array, "b h w c"]:
    b, height, width, c = x.shape
    inner = self.heads * self.head_width

    def project(x, features, name, is_zero=False):
      if self.is_linear:
        return dense(x, features, name=name, is_zero=is_zero, dtype=self.dtype)
      return conv(
        x, features, name=name, size=1, is_zero=is_zero, dtype=self.dtype
      )

    h = group_norm(
      x, name="norm", groups=self.groups, epsilon=1e-6, dtype=self.dtype
    )
    h = project(h, inner, "proj_in").reshape(b, height * width, inner)
    h = self.blocks(h, context)
    h = h.reshape(b, height, width, inner)
    return x + project(h, c, "proj_out", is_zero=True)

  def blocks(self, h: Array, context: Array | None) -> Array:
    """All transformer blocks, one after another or in a scan."""
    block_type = remat_policy(
      self.remat if self.depth > 1 else "off", TransformerBlock
    )
    options = (
      self.heads,
      self.head_width,
      self.is_cross_only,
      self.attention_backend,
    )
    names = [f"block_{i}" for i in range(self.depth)]
    if not self.is_scanned or self.depth == 1 or self.is_initializing():
      for name in names:
        h = block_type(*options, self.dtype, name=name)(h, context)
      return h
    params = [self.variables["params"][name] for name in names]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    block = block_type(*options, self.dtype, parent=None)

    def body(h: Array, params: Any):
      return block.apply({"params": params}, h, context), None

    return jax.lax.scan(body, h, stacked)[0]


class PixelAttention(nn.Module):
  """Self-attention over pixels with biased q, k, v and a residual.

  The autoencoder's has one head as wide as the channels and epsilon 1e-6, the
  U-Net's several heads, epsilon 1e-5 and a last projection that starts at zero.
  """

  heads: int = 1
  epsilon: float = 1e-6
  is_zero: bool = False
  groups: int = 32
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, height, width, c = x.shape
    h = group_norm(
      x,
      name="norm",
      groups=self.groups,
      epsilon=self.epsilon,
      dtype=self.dtype,
    ).reshape(b, height * width, c)

    def project(name):
      tokens = dense(h, c, name=name, dtype=self.dtype)
      return tokens.reshape(b, -1, self.heads, c // self.heads)

    out = dot_product_attention(
      project("q"), project("k"), project("v"), self.attention_backend
    )
    out = out.reshape(b, height, width, c)
    return x + dense(
      out, c, name="proj_out", is_zero=self.is_zero, dtype=self.dtype
    )
