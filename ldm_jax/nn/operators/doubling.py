"""Nearest doubling and the 3 x 3 convolution after it, as one operator.

Each of the four pixels that come of one sees three different neighbourhoods of
2 x 2 input pixels; along one axis [a+b+c] of the kernel's taps meet twice the
same pixel. Along each axis three products give the two outputs:

  y_0 = (d_0 - d_1) g_0 + d_1 (g_0 + g_1 + g_2)
  y_1 = d_1 (g_0 + g_1 + g_2) - (d_1 - d_2) g_2

so that 9 products per channel pair give 4 outputs, instead of 36. Large images
are computed in strips of lines; their 9 products are one batched product.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.strips import (
  are_many,
  lines_of_a_strip,
  over_strips,
  sum_over_strips,
)
from ldm_jax.nn.operators.transforms import (
  Grid,
  both_axes,
  interleave,
  product,
  rows,
  stacked,
  taps,
)


@jax.custom_vjp
def doubled_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b 2*h 2*w d"]:
  """The convolution of x repeated twice along height and width."""
  x, kernel = lax.optimization_barrier((x, kernel))
  b, h, w, _ = x.shape
  sums = both_axes(_transform_kernel, taps(kernel))
  if not _is_by_strips(x, kernel):
    pixels = _pixels(_padded(x))
    return _outputs(_products(pixels, sums), b, h, w)
  weights = stacked(sums)

  def convolve(strip: Array) -> Array:
    products = stacked(_pixels(strip)) @ weights
    products = _grid(lax.optimization_barrier(products))
    return _outputs(products, b, strip.shape[1] - 2, w)

  return over_strips(convolve, x, lines_of_a_strip(h, b * w, 1))[:, : 2 * h]


def _forward(x: Array, kernel: Array):
  return doubled_convolution(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array):
  x, kernel = lax.optimization_barrier(saved)
  b, h, w, c = x.shape
  sums = both_axes(_transform_kernel, taps(kernel))
  # One product of all 9 sums, which are the kernel's size together.
  turned = jnp.concatenate([m for row in sums for m in row], axis=1)

  def pull(grads: Array) -> Array:
    """Of x: the sum of E K^T, E of the grads around both pixels."""
    found = both_axes(_around, _cells(grads, 4))
    found = jnp.concatenate([m for row in found for m in row], axis=1)
    found = product(lax.optimization_barrier(found), turned, is_turned=True)
    return found.reshape(b, -1, w, c)

  def gradient(strip: Array, grads: Array) -> Array:
    """Of the kernel's sums, [9 c d]."""
    pixels = stacked(_pixels(strip))
    spread = stacked(both_axes(_spread_outputs, _cells(grads, 2)))
    return jnp.einsum("ntc,ntd->ncd", pixels, spread)

  if _is_by_strips(x, kernel):
    lines = lines_of_a_strip(h, b * w, 1)
    x_grad = over_strips(pull, grad, 2 * lines)[:, :h]
    sum_grads = sum_over_strips(gradient, x, grad, lines)
  else:
    x_grad = pull(_padded(grad))
    sum_grads = gradient(_padded(x), grad)
  found = both_axes(_gather_kernel, _grid(sum_grads))
  return x_grad, jnp.stack([jnp.stack(row) for row in found])


doubled_convolution.defvjp(_forward, _backward)


def _is_by_strips(x: Array, kernel: Array) -> bool:
  b, h, w, _ = x.shape
  return are_many(b * h * w, kernel)


def _padded(x: Array) -> Array:
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _products(pixels: Grid, sums: Grid) -> Grid:
  pairs = [zip(*pair, strict=True) for pair in zip(pixels, sums, strict=True)]
  return [[product(*pair) for pair in row] for row in pairs]


def _outputs(products: Grid, b: int, h: int, w: int) -> Array:
  return interleave(both_axes(_gather_outputs, products), b, h, w)


def _grid(products: Array) -> Grid:
  return [[products[3 * i + j] for j in range(3)] for i in range(3)]


def _pixels(padded: Array) -> Grid:
  """The transformed pixels, matrices [b*h*w c]."""
  h, w = padded.shape[1] - 2, padded.shape[2] - 2
  near = [
    [rows(padded[:, i : i + h, j : j + w]) for j in range(3)] for i in range(3)
  ]
  return both_axes(_transform_pixels, near)


def _cells(grads: Array, size: int) -> Grid:
  """The grads of every second window of size x size, matrices [b*h*w d]."""
  h, w = grads.shape[1] - size + 1, grads.shape[2] - size + 1
  return [
    [rows(grads[:, i : i + h : 2, j : j + w : 2]) for j in range(size)]
    for i in range(size)
  ]


def _transform_pixels(d: list[Array]) -> list[Array]:
  return [d[0] - d[1], d[1], d[1] - d[2]]


def _transform_kernel(g: list[Array]) -> list[Array]:
  return [g[0], g[0] + g[1] + g[2], g[2]]


def _gather_outputs(m: list[Array]) -> list[Array]:
  return [m[0] + m[1], m[1] - m[2]]


def _spread_outputs(y: list[Array]) -> list[Array]:
  """The transpose of `_gather_outputs`."""
  return [y[0], y[0] + y[1], -y[1]]


def _gather_kernel(u: list[Array]) -> list[Array]:
  """The transpose of `_transform_kernel`."""
  return [u[0] + u[1], u[1], u[1] + u[2]]


def _around(y: list[Array]) -> list[Array]:
  """What of a pixel's grads, and its neighbours', meets each of the sums."""
  return [y[3] - y[1], y[1] + y[2], y[0] - y[2]]
