"""The block of a diffusion transformer, modulated by time and class."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.attention import AttentionBackend, dot_product_attention
from ldm_jax.nn.dit.positions import rotate
from ldm_jax.nn.initializers import xavier
from ldm_jax.nn.operators.rows import on_rows

Norm = Literal["layer", "rms"]
FeedForward = Literal["gelu", "swiglu"]


def linear(
  x: Float[Array, "... c"],
  features: int,
  *,
  name: str,
  dtype: DTypeLike,
  kernel_init: Callable[..., Any] = xavier,
) -> Float[Array, "... d"]:
  """x W + b over the last axis; b starts at 0."""
  layer = nn.Dense(features, dtype=dtype, kernel_init=kernel_init, name=name)
  return on_rows(layer, x)


def modulated(
  x: Float[Array, "b l d"],
  shift: Float[Array, "b d"],
  scale: Float[Array, "b d"],
  norm: Norm,
  epsilon: float,
) -> Float[Array, "b l d"]:
  """norm(x) (1 + scale) + shift in float32; the norm has no parameters.

  "layer" subtracts the mean and divides by the deviation, "rms" divides by the
  root mean square (Zhang and Sennrich 2019, eq. 4).
  """
  x = x.astype(jnp.float32)
  if norm == "layer":
    x = x - x.mean(-1, keepdims=True)
  variance = (x * x).mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt(variance + epsilon)
  return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
  """x + gate attention(adaLN x), then x + gate MLP(adaLN x).

  Peebles and Xie 2023, figure 3 (adaLN-Zero). Shifts, scales and gates are one
  matrix of silu(condition), which starts at zero: a new block is the identity.

  Attributes:
    hidden: features inside the MLP.
    mlp: "gelu" is W2 gelu(W1 x), by tanh; "swiglu" is
      W3 (silu(W1 x) * (W2 x)) (Shazeer 2020, eq. 6).
    is_qk_normed: queries and keys are divided by their root mean square, times
      a learned scale (Dehghani et al. 2023, section 2).
    mlp_epsilon: of the norm before the MLP.
  """

  heads: int
  hidden: int
  norm: Norm = "layer"
  mlp: FeedForward = "gelu"
  is_qk_normed: bool = False
  mlp_epsilon: float = 1e-6
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    condition: Float[Array, "b d"],
    angles: Float[Array, "l e"] | None,
  ) -> Float[Array, "b l d"]:
    """The next tokens.

    Args:
      condition: embedding of time and class, float32.
      angles: of the rotations of queries and keys; None for none.
    """
    width = x.shape[-1]
    parameters = linear(
      jax.nn.silu(condition),
      6 * width,
      name="modulation",
      dtype="float32",
      kernel_init=nn.initializers.zeros,
    )
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(parameters, 6, -1)

    def gated(h: Array, gate: Array) -> Array:
      return (h * gate[:, None]).astype(self.dtype)

    h = modulated(x, shift1, scale1, self.norm, 1e-6).astype(self.dtype)
    x = x + gated(self.attention(h, angles), gate1)
    h = modulated(x, shift2, scale2, self.norm, self.mlp_epsilon)
    return x + gated(self.feed_forward(h.astype(self.dtype)), gate2)

  def attention(self, x: Array, angles: Array | None) -> Array:
    """Self-attention of `heads` heads with biases."""
    b, length, width = x.shape

    def project(name: str) -> Array:
      tokens = linear(x, width, name=name, dtype=self.dtype)
      return tokens.reshape(b, length, self.heads, width // self.heads)

    def turned(tokens: Array, name: str) -> Array:
      if self.is_qk_normed:
        norm = nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=f"{name}_norm")
        tokens = norm(tokens).astype(self.dtype)
      return tokens if angles is None else rotate(tokens, angles)

    out = dot_product_attention(
      turned(project("q"), "q"),
      turned(project("k"), "k"),
      project("v"),
      self.attention_backend,
    )
    out = out.reshape(b, length, width)
    return linear(out, width, name="out", dtype=self.dtype)

  def feed_forward(self, x: Array) -> Array:
    """The MLP on every token."""
    h = linear(x, self.hidden, name="up", dtype=self.dtype)
    if self.mlp == "swiglu":
      gate = linear(x, self.hidden, name="gate", dtype=self.dtype)
      h = h * jax.nn.silu(gate)
    else:
      h = jax.nn.gelu(h, approximate=True)
    return linear(h, x.shape[-1], name="down", dtype=self.dtype)
