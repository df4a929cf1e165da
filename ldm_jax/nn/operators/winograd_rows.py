"""Winograd's convolution of small images: a loop over the rows of a tile.

The loop goes over the four rows of the transformed tiles, so that only a
quarter of the transformed pixels and kernels exists at a time, and a quarter of
the code is compiled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import (
  interleave,
  product,
  rows,
  zeros_after,
)
from ldm_jax.nn.operators.winograd_transforms import (
  gather_kernel,
  gather_outputs,
  spread_outputs,
  transform_kernel,
  transform_pixels,
)

# A row of B^T takes one line of the tile, and adds or subtracts another.
_LINES = (0, 1, 2, 1), (2, 2, 1, 3)
_SIGNS = (-1, 1, -1, -1)
_KERNEL = (1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)  # G
_SPREAD = (1, 0), (1, 1), (1, -1), (0, -1)  # A


def convolution_by_rows(
  x: Float[Array, "b h w c"], kernel: Array, is_turned: bool = False
) -> Float[Array, "b h w d"]:
  """A^T [(G g G^T) * (B^T d B)] A for every tile d of 4 x 4 pixels.

  Args:
    kernel: [3 3 c d], or [3 3 d c] if it is turned by half a turn.
  """
  b, h, w, _ = x.shape
  lines = _lines(x)
  order = range(3)[::-1] if is_turned else range(3)

  def row(numbers: tuple) -> tuple[Array, ...]:
    line, weights = numbers
    sums = sum(weights[i] * kernel[j] for i, j in enumerate(order))
    weights = transform_kernel([sums[j] for j in order])
    pairs = zip(_pixels(lines, line), weights, strict=True)
    return tuple(gather_outputs([product(*pair, is_turned) for pair in pairs]))

  columns = _over_rows(row, x, (_row_numbers(), _floats(_KERNEL)))
  cells = [gather_outputs(list(column)) for column in columns]
  grid = [list(line) for line in zip(*cells, strict=True)]
  return interleave(grid, b, (h + 1) // 2, (w + 1) // 2)[:, :h, :w]


def kernel_gradient_by_rows(
  x: Float[Array, "b h w c"], grad: Float[Array, "b h w d"]
) -> Float[Array, "3 3 c d"]:
  """G^T [sum over tiles of (B^T d B) (A dY A^T)] G."""
  lines = _lines(x)
  h, w = grad.shape[1:3]
  even = jnp.pad(grad, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
  first, second = even[:, ::2], even[:, 1::2]

  def row(numbers: tuple) -> tuple[Array, ...]:
    line, (top, bottom) = numbers
    spread = lax.optimization_barrier(top * first + bottom * second)
    grads = spread_outputs([spread[:, :, j::2] for j in range(2)])
    pairs = zip(_pixels(lines, line), grads, strict=True)
    products = [pixels.T @ rows(grad) for pixels, grad in pairs]
    return tuple(gather_kernel(products))

  columns = _over_rows(row, x, (_row_numbers(), _floats(_SPREAD)))
  taps = [gather_kernel(list(column)) for column in columns]
  return jnp.stack([jnp.stack(column) for column in taps], axis=1)


def _over_rows(
  function: Callable[[tuple], tuple[Array, ...]], x: Array, rows: tuple
) -> list[Array]:
  """`function` of each of the four rows, stacked; made after x."""
  at = lambda i: jax.tree.map(lambda number: number[i], rows)

  def put(i: ArrayLike, out: list[Array]) -> list[Array]:
    pairs = zip(out, function(at(i)), strict=True)
    return [lax.dynamic_update_index_in_dim(*pair, i, 0) for pair in pairs]

  shapes = jax.eval_shape(lambda: function(at(0)))
  start = [zeros_after(x, (4, *shape.shape)) for shape in shapes]
  return lax.fori_loop(0, 4, put, start)


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
  return transform_pixels([rows(cut(j)) for j in range(4)])
