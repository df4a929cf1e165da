"""Convolutions by the chosen algorithm, in the form that `nn.Conv` calls."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.choice import (
  choose_convolution,
  is_cast,
  is_doubled_at_once,
)
from ldm_jax.nn.operators.doubling import doubled_convolution
from ldm_jax.nn.operators.im2col import im2col_convolution
from ldm_jax.nn.operators.pointwise import (
  few_outputs_convolution,
  pointwise_convolution,
)
from ldm_jax.nn.operators.winograd import winograd_convolution

_ALGORITHMS = {
  "winograd": winograd_convolution,
  "im2col": im2col_convolution,
  "pointwise": pointwise_convolution,
  "few_outputs": few_outputs_convolution,
}


def convolve(
  x: Array, kernel: Array, strides: Any, padding: Any, **options: Any
) -> Array:
  """`jax.lax.conv_general_dilated`; of stride 1 by the fastest way.

  A value of `flax.linen.Conv`'s field `conv_general_dilated`.
  """
  size = kernel.shape[:2]
  is_same = size in ((1, 1), (3, 3)) and all(
    tuple(sides) == (size[0] // 2,) * 2 for sides in padding
  )
  if is_same and tuple(strides) == (1, 1):
    name = choose_convolution(x.shape, kernel.shape, x.dtype)
    if is_cast(name, x.dtype):
      exact = _ALGORITHMS[name](*(a.astype(jnp.float32) for a in (x, kernel)))
      return exact.astype(x.dtype)
    if name != "xla":
      return _ALGORITHMS[name](x, kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def convolve_doubled(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "3 3 c d"],
  strides: Any,
  padding: Any,
  **options: Any,
) -> Float[Array, "b 2*h 2*w d"]:
  """`convolve` of x repeated twice along height and width (nearest)."""
  if is_doubled_at_once(kernel.shape, x.dtype):
    return doubled_convolution(x, kernel)
  return convolve(double(x), kernel, strides, padding, **options)


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Nearest neighbour, to twice the height and width."""
  return x.repeat(2, axis=1).repeat(2, axis=2)
