"""What the fast convolutions share: grids of arrays, and transforms of them."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Grid = list[list[Array]]


def both_axes(transform: Callable[[list], list], grid: Grid) -> Grid:
  """M grid M^T, of a transform that multiplies a list by the matrix M."""
  columns = [transform([row[j] for row in grid]) for j in range(len(grid[0]))]
  return [transform(list(row)) for row in zip(*columns, strict=True)]


def taps(kernel: Array) -> Grid:
  """The matrices [c d] of a kernel [3 3 c d]."""
  return [[kernel[i, j] for j in range(3)] for i in range(3)]


def stacked(grid: Grid) -> Array:
  """[n ...] of a grid of n arrays; not fused into what reads it."""
  return lax.optimization_barrier(jnp.stack([x for row in grid for x in row]))


def rows(x: Array) -> Array:
  """[... c] as a matrix."""
  return x.reshape(-1, x.shape[-1])


def product(matrix: Array, other: Array) -> Array:
  """The product of two matrices, with a batch axis of one.

  `layers.remat_policy` "dots" keeps products without a batch axis, and those
  of Winograd's convolution would be four times its result.
  """
  numbers = (((2,), (1,)), ((0,), (0,)))
  return lax.dot_general(matrix[None], other[None], numbers)[0]


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
