"""What the fast convolutions share: transforms, products and their layouts.

Transforms of kernels and of products are products with small constant matrices:
XLA:CPU compiles a product in a tenth of the time of the sums it consists of.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Matrix = tuple[tuple[int | float, ...], ...]


def transposed(matrix: Matrix) -> Matrix:
  """Rows for columns."""
  return tuple(zip(*matrix, strict=True))


def along_both_axes(matrix: Matrix, is_reversed: bool = False) -> Matrix:
  """The matrix for the cells of a grid, of one for its rows and its columns.

  Args:
    is_reversed: for the cells in reverse, as of a kernel turned by half a turn.
  """
  both = tuple(
    tuple(a * b for a in row for b in other)
    for row in matrix
    for other in matrix
  )
  return tuple(row[::-1] for row in both) if is_reversed else both


def combine(
  matrix: Matrix | Float[Array, "p q"], x: Float[Array, "q ..."]
) -> Float[Array, "p ..."]:
  """Sums of the q arrays with the matrix's weights, as one product.

  The product has a batch axis of one: see `product`. The arrays' axes are not
  merged, since a mesh may shard any of them.
  """
  weights = jnp.asarray(matrix, x.dtype)
  numbers = (((2,), (1,)), ((0,), (0,)))
  return lax.dot_general(weights[None], x[None], numbers)[0]


def transform_taps(
  matrix: Matrix, kernel: Float[Array, "3 3 c d"], is_turned: bool = False
) -> Float[Array, "p c d"]:
  """M g M^T of a kernel, of the matrix M; not fused into what reads it."""
  taps = kernel.reshape(9, *kernel.shape[2:])
  sums = combine(along_both_axes(matrix, is_turned), taps)
  return lax.optimization_barrier(sums)


def rows(x: Array) -> Array:
  """[... c] as a matrix."""
  return x.reshape(-1, x.shape[-1])


def product(matrix: Array, other: Array, is_turned: bool = False) -> Array:
  """The product of two matrices, with a batch axis of one.

  `layers.remat_policy` "dots" keeps products without a batch axis. Those of
  Winograd's convolution would be four times its result, those of attention its
  scores.

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


def interleave(
  cells: Float[Array, "4 t d"], b: int, h: int, w: int
) -> Float[Array, "b h2 w2 d"]:
  """The images, h2 = 2 h, of the four pixels of every window of 2 x 2."""
  cells = lax.optimization_barrier(cells).reshape(2, 2, b, h, w, -1)
  return cells.transpose(2, 3, 0, 4, 1, 5).reshape(b, 2 * h, 2 * w, -1)


def split_windows(x: Float[Array, "b h w d"]) -> Float[Array, "4 t d"]:
  """The four pixels of every window of 2 x 2; the inverse of `interleave`."""
  b, h, w, d = x.shape
  cells = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(2, 4, 0, 1, 3, 5)
  return lax.optimization_barrier(cells.reshape(4, -1, d))


def zeros_after(x: Array, shape: tuple[int, ...]) -> Array:
  """Zeros, for a loop to fill, that do not exist before x does.

  XLA would hold those of all layers at once.
  """
  zero, _ = lax.optimization_barrier((jnp.zeros((), x.dtype), x))
  return jnp.full(shape, zero)
