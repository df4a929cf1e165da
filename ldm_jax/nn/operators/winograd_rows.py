"""Winograd's convolution of small images: a loop over the rows of a tile.

The loop goes over the four rows of the transformed tiles, so that only a
quarter of the transformed pixels and kernels exists at a time, and a quarter of
the code is compiled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import (
  Matrix,
  along_both_axes,
  combine,
  interleave,
  products,
  rows,
  split_windows,
  zeros_after,
)
from ldm_jax.nn.operators.winograd_transforms import (
  GATHER,
  KERNEL,
  OUTPUTS,
  SPREAD,
  transform_pixels,
)

# A row of B^T takes one line of the tile, and adds or subtracts another.
_LINES = (0, 1, 2, 1), (2, 2, 1, 3)
_SIGNS = (-1, 1, -1, -1)


def convolution_by_rows(
  x: Float[Array, "b h w c"], kernel: Array, is_turned: bool = False
) -> Float[Array, "b h w d"]:
  """A^T [(G g G^T) * (B^T d B)] A for every tile d of 4 x 4 pixels.

  Args:
    kernel: [3 3 c d], or [3 3 d c] if it is turned by half a turn.
  """
  b, h, w, _ = x.shape
  lines = _lines(x)
  taps = kernel.reshape(9, *kernel.shape[2:])

  def row(numbers: tuple) -> Array:
    line, matrix = numbers
    weights = lax.optimization_barrier(combine(matrix, taps))
    return combine(OUTPUTS, products(_pixels(lines, line), weights, is_turned))

  matrices = _of_rows(along_both_axes(KERNEL, is_turned))
  cells = combine(OUTPUTS, _over_rows(row, x, (_row_numbers(), matrices)))
  cells = cells.reshape(4, *cells.shape[2:])
  return interleave(cells, b, (h + 1) // 2, (w + 1) // 2)[:, :h, :w]


def kernel_gradient_by_rows(
  x: Float[Array, "b h w c"], grad: Float[Array, "b h w d"]
) -> Float[Array, "3 3 c d"]:
  """G^T [sum over tiles of (B^T d B) (A dY A^T)] G."""
  lines = _lines(x)
  h, w = grad.shape[1:3]
  even = jnp.pad(grad, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
  cells = split_windows(even)

  def row(numbers: tuple) -> Array:
    line, matrix = numbers
    spread = lax.optimization_barrier(combine(matrix, cells))
    sums = jnp.einsum("ntc,ntd->ncd", _pixels(lines, line), spread)
    return combine(GATHER, sums)

  matrices = _of_rows(along_both_axes(SPREAD))
  return combine(GATHER, _over_rows(row, x, (_row_numbers(), matrices)))


def _over_rows(
  function: Callable[[tuple], Array], x: Array, numbers: tuple
) -> Array:
  """`function` of each of the four rows, stacked; made after x."""
  at = lambda i: jax.tree.map(lambda number: number[i], numbers)
  put = lambda i, out: lax.dynamic_update_index_in_dim(
    out, function(at(i)), i, 0
  )
  shape = jax.eval_shape(lambda: function(at(0))).shape
  return lax.fori_loop(0, 4, put, zeros_after(x, (4, *shape)))


def _of_rows(matrix: Matrix) -> Float[Array, "4 4 q"]:
  """A matrix for the 16 products of a tile, in one of 4 for each row."""
  return jnp.array(matrix, jnp.float32).reshape(4, 4, -1)


def _row_numbers() -> tuple[Array, ...]:
  """Of every row of B^T: its two lines of the tile, and the second's sign."""
  return (*map(jnp.array, _LINES), jnp.array(_SIGNS, jnp.float32))


def _lines(x: Array) -> Array:
  """The padded pixels, [b th+1 2 2*tw+2 c]: two lines of a tile on an axis."""
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
  # The padding is not repeated in every transform.
  return lax.optimization_barrier(x.reshape(b, -1, 2, x.shape[2], c))


def _pixels(
  lines: Array, line: tuple[Array, Array, Array]
) -> Float[Array, "4 t c"]:
  """One row of B^T d B of every tile of 4 x 4 pixels.

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
  pixels = transform_pixels([rows(cut(j)) for j in range(4)])
  return lax.optimization_barrier(jnp.stack(pixels))
