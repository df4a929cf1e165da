"""Dense layers over rows of tokens, as a matrix where that is faster."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.choice import is_cast, is_enabled


def on_rows(
  layer: nn.Module, x: Float[Array, "... c"]
) -> Float[Array, "... d"]:
  """A dense layer over the last axis of x.

  On a CPU x becomes a matrix: XLA:CPU takes five times as long for the gradient
  of W when it has to contract two axes. Elsewhere tokens keep an axis of their
  own, which the mesh's `context` shards.
  """
  if not is_enabled():
    return layer(x)
  rows = layer(x.reshape(-1, x.shape[-1]))
  return rows.reshape(*x.shape[:-1], rows.shape[-1])


def product(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
  """`jax.lax.dot_general`, of bfloat16 in float32 where that is faster.

  A value of `flax.linen.Dense`'s field `dot_general`.
  """
  if not is_cast("product", x.dtype):
    return lax.dot_general(x, kernel, dimensions, **options)
  exact = lax.dot_general(
    *(a.astype(jnp.float32) for a in (x, kernel)), dimensions, **options
  )
  return exact.astype(x.dtype)
