"""Winograd's convolution F(2 x 2, 3 x 3)  (Lavin and Gray 2016, section 4.1).

Y = A^T [(G g G^T) * (B^T d B)] A for every tile d of 4 x 4 input pixels: 16
products per channel pair and 4 output pixels, instead of 36. The error against
float64 is about 1e-6 of the scale, twice that of a direct convolution.

A loop goes over the four rows of the transformed tiles, so that only a quarter
of the transformed pixels and kernels exists at a time, and a quarter of the
code is compiled.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import (
  interleave,
  product,
  rows,
)

# A row of B^T takes one line of the tile, and adds or subtracts another.
_LINES = (0, 1, 2, 1), (2, 2, 1, 3)
_SIGNS = (-1, 1, -1, -1)
_KERNEL = (1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)  # G
_SPREAD = (1, 0), (1, 1), (1, -1), (0, -1)  # A


@jax.custom_vjp
def winograd_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
  """A 3 x 3 convolution of stride 1, padded with one zero on every side."""
  # Not before x is there: XLA would hold those of all layers at once.
  x, kernel = lax.optimization_barrier((x, kernel))
  b, h, w, _ = x.shape
  lines = _lines(x)

  def row(_, numbers: tuple):
    line, weights = numbers
    taps = list(sum(weights[i] * kernel[i] for i in range(3)))
    pairs = zip(_pixels(lines, line), _transform_kernel(taps), strict=True)
    return None, tuple(_gather_outputs([product(*pair) for pair in pairs]))

  _, columns = lax.scan(row, None, (_row_numbers(), _floats(_KERNEL)))
  cells = [_gather_outputs(list(column)) for column in columns]
  grid = [list(line) for line in zip(*cells, strict=True)]
  return interleave(grid, b, (h + 1) // 2, (w + 1) // 2)[:, :h, :w]


def _forward(x: Array, kernel: Array):
  return winograd_convolution(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array):
  x, kernel = saved
  # The gradient of x is the convolution with the kernel turned and transposed.
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return winograd_convolution(grad, turned), kernel_gradient(x, grad)


winograd_convolution.defvjp(_forward, _backward)


def kernel_gradient(
  x: Float[Array, "b h w c"], grad: Float[Array, "b h w d"]
) -> Float[Array, "3 3 c d"]:
  """G^T [sum over tiles of (B^T d B) (A dY A^T)] G."""
  x, grad = lax.optimization_barrier((x, grad))
  lines = _lines(x)
  h, w = grad.shape[1:3]
  even = jnp.pad(grad, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
  first, second = even[:, ::2], even[:, 1::2]

  def row(_, numbers: tuple):
    line, (top, bottom) = numbers
    spread = lax.optimization_barrier(top * first + bottom * second)
    grads = _spread_outputs([spread[:, :, j::2] for j in range(2)])
    pairs = zip(_pixels(lines, line), grads, strict=True)
    products = [pixels.T @ rows(grad) for pixels, grad in pairs]
    return None, tuple(_gather_kernel(products))

  _, columns = lax.scan(row, None, (_row_numbers(), _floats(_SPREAD)))
  taps = [_gather_kernel(list(column)) for column in columns]
  return jnp.stack([jnp.stack(column) for column in taps], axis=1)


def _floats(matrix: tuple) -> Array:
  return jnp.array(matrix, jnp.float32)


def _row_numbers() -> tuple[Array, ...]:
  """Of every row of B^T: its two lines of the tile, and the second's sign."""
  return (*map(jnp.array, _LINES), _floats(_SIGNS))


def _lines(x: Array) -> Array:
  """The padded pixels, [b th+1 2 2*tw+2 c]: two lines of a tile on an axis."""
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
  # The padding is not repeated in every transform.
  return lax.optimization_barrier(x.reshape(b, -1, 2, x.shape[2], c))


def _pixels(lines: Array, line: tuple[Array, Array, Array]) -> list[Array]:
  """One row of B^T d B, four matrices [b*th*tw c], of tiles of 4 x 4 pixels.

  Args:
    lines: see `_lines`.
    line: a row of `_row_numbers`.
  """
  b, height, _, width, c = lines.shape
  th, tw = height - 1, width // 2 - 1

  def take(number: Array) -> Array:
    start = (0, number // 2, number % 2, 0, 0)
    return lax.dynamic_slice(lines, start, (b, th, 1, width, c))

  first, second, sign = line
  row = lax.optimization_barrier(take(first) + sign * take(second))
  row = row.reshape(b, th, tw + 1, 2, c)
  cut = lambda j: row[:, :, j // 2 : j // 2 + tw, j % 2]
  return _transform_pixels([rows(cut(j)) for j in range(4)])


def _transform_pixels(d: list[Array]) -> list[Array]:
  """B^T d."""
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transform_kernel(g: list[Array]) -> list[Array]:
  """G g."""
  outer, inner = (g[0] + g[2]) * 0.5, g[1] * 0.5
  return [g[0], outer + inner, outer - inner, g[2]]


def _gather_outputs(m: list[Array]) -> list[Array]:
  """A^T m."""
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _spread_outputs(y: list[Array]) -> list[Array]:
  """A y."""
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _gather_kernel(u: list[Array]) -> list[Array]:
  """G^T u."""
  outer, inner = (u[1] + u[2]) * 0.5, (u[1] - u[2]) * 0.5
  return [u[0] + outer, inner, outer + u[3]]
