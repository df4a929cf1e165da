"""Nearest doubling and the 3 x 3 convolution after it, as one operator.

Each of the four pixels that come of one sees three different neighbourhoods of
2 x 2 input pixels; along one axis [a+b+c] of the kernel's taps meet twice the
same pixel. Along each axis three products give the two outputs:

  y_0 = (d_0 - d_1) g_0 + d_1 (g_0 + g_1 + g_2)
  y_1 = d_1 (g_0 + g_1 + g_2) - (d_1 - d_2) g_2

so that 9 products per channel pair give 4 outputs, instead of 36.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import (
  Grid,
  both_axes,
  interleave,
  product,
  rows,
  taps,
)


@jax.custom_vjp
def doubled_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b 2*h 2*w d"]:
  """The convolution of x repeated twice along height and width."""
  return _doubled(x, kernel)


def _doubled(x: Array, kernel: Array) -> Array:
  b, h, w, _ = x.shape
  pixels = both_axes(_transform_pixels, _neighbours(x))
  sums = both_axes(_transform_kernel, taps(kernel))
  products = [
    [product(rows(pixels[i][j]), sums[i][j]) for j in range(3)]
    for i in range(3)
  ]
  return interleave(both_axes(_gather_outputs, products), b, h, w)


def _forward(x: Array, kernel: Array):
  return _doubled(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array):
  return jax.vjp(_doubled, *saved)[1](grad)


doubled_convolution.defvjp(_forward, _backward)


def _neighbours(x: Array) -> Grid:
  h, w = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [[x[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)]


def _transform_pixels(d: list[Array]) -> list[Array]:
  return [d[0] - d[1], d[1], d[1] - d[2]]


def _transform_kernel(g: list[Array]) -> list[Array]:
  return [g[0], g[0] + g[1] + g[2], g[2]]


def _gather_outputs(m: list[Array]) -> list[Array]:
  return [m[0] + m[1], m[1] - m[2]]
