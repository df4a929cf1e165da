"""What the fast convolutions share: grids of arrays, and transforms of them."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Grid = list[list[Array]]


def both_axes(transform: Callable[[list], list], grid: Grid) -> Grid:
  """M grid M^T, of a transform that multiplies a list by the matrix M."""
  columns = [transform([row[j] for row in grid]) for j in range(len(grid[0]))]
  return [transform(list(row)) for row in zip(*columns, strict=True)]


def taps(kernel: Array, is_turned: bool = False) -> Grid:
  """The matrices [c d] of a kernel [3 3 c d]; in reverse if it is turned."""
  order = range(3)[::-1] if is_turned else range(3)
  return [[kernel[i, j] for j in order] for i in order]


def stacked(grid: Grid) -> Array:
  """[n ...] of a grid of n arrays; not fused into what reads it."""
  return lax.optimization_barrier(jnp.stack([x for row in grid for x in row]))


def rows(x: Array) -> Array:
  """[... c] as a matrix."""
  return x.reshape(-1, x.shape[-1])


def product(matrix: Array, other: Array, is_turned: bool = False) -> Array:
  """The product of two matrices, with a batch axis of one.

  `layers.remat_policy` "dots" keeps products without a batch axis, and those
  of Winograd's convolution would be four times its result.

  Args:
    is_turned: the second is transposed.
  """
  return products(matrix[None], other[None], is_turned)[0]


def products(
  matrices: Float[Array, "n t c"], others: Array, is_turned: bool = False
) -> Float[Array, "n t d"]:
  """The product of every matrix with the other, [n c d] or [n d c] if turned.

  A transposed copy of a kernel takes longer than the product itself.
  """
  numbers = (((2,), (2 if is_turned else 1,)), ((0,), (0,)))
  return lax.dot_general(matrices, others, numbers)


def interleave(cells: Grid, b: int, h: int, w: int) -> Array:
  """[b 2h 2w d] of the four [b*h*w d] of every cell of 2 x 2 pixels."""
  lines = [
    jnp.stack([cell.reshape(b, h, w, -1) for cell in line], axis=3)
    for line in cells
  ]
  return jnp.stack(lines, axis=2).reshape(b, 2 * h, 2 * w, -1)


def zeros_after(x: Array, shape: tuple[int, ...]) -> Array:
  """Zeros, for a loop to fill, that do not exist before x does.

  XLA would hold those of all layers at once.
  """
  zero, _ = lax.optimization_barrier((jnp.zeros((), x.dtype), x))
  return jnp.full(shape, zero)
