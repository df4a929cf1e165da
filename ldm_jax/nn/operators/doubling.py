"""Nearest doubling and the 3 x 3 convolution after it, as one operator.

Each of the four pixels that come of one sees three different neighbourhoods of
2 x 2 input pixels; along one axis [a+b+c] of the kernel's taps meet twice the
same pixel. Along each axis three products give the two outputs:

  y_0 = (d_0 - d_1) g_0 + d_1 (g_0 + g_1 + g_2)
  y_1 = d_1 (g_0 + g_1 + g_2) - (d_1 - d_2) g_2

so that 9 products per channel pair give 4 outputs, instead of 36. They are one
batched product; large images are computed in strips of lines.
"""

from collections.abc import Callable

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
  Matrix,
  along_both_axes,
  combine,
  interleave,
  products,
  split_windows,
  transform_taps,
  transposed,
)

_KERNEL: Matrix = ((1, 0, 0), (1, 1, 1), (0, 0, 1))
_OUTPUTS: Matrix = ((1, 1, 0), (0, 1, -1))


@jax.jit
@jax.custom_vjp
def doubled_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b 2*h 2*w d"]:
  """The convolution of x repeated twice along height and width."""
  x, kernel = lax.optimization_barrier((x, kernel))
  b, h, w, _ = x.shape
  sums = transform_taps(_KERNEL, kernel)

  def convolve(padded: Array) -> Array:
    found = lax.optimization_barrier(products(_pixels(padded), sums))
    cells = combine(along_both_axes(_OUTPUTS), found)
    return interleave(cells, b, padded.shape[1] - 2, w)

  if not _is_by_strips(x, kernel):
    return convolve(_padded(x))
  return over_strips(convolve, x, lines_of_a_strip(h, b * w, 1))[:, : 2 * h]


def _forward(x: Array, kernel: Array):
  return doubled_convolution(x, kernel), (x, kernel)


@jax.jit
def _backward(saved: tuple[Array, Array], grad: Array):
  x, kernel = lax.optimization_barrier(saved)
  b, h, w, _ = x.shape
  sums = transform_taps(_KERNEL, kernel)

  def pull(grads: Array) -> Array:
    """Of x: the sum of E K^T, E of the grads around both pixels."""
    found = products(_transform_windows(_around, 4, 2, grads), sums, True)
    return found.sum(0).reshape(b, -1, w, x.shape[-1])

  def gradient(strip: Array, grads: Array) -> Array:
    """Of the kernel's sums, [9 c d]."""
    matrix = along_both_axes(transposed(_OUTPUTS))
    spread = lax.optimization_barrier(combine(matrix, split_windows(grads)))
    return jnp.einsum("ntc,ntd->ncd", _pixels(strip), spread)

  if _is_by_strips(x, kernel):
    lines = lines_of_a_strip(h, b * w, 1)
    x_grad = over_strips(pull, grad, 2 * lines)[:, :h]
    sum_grads = sum_over_strips(gradient, x, grad, lines)
  else:
    x_grad = pull(_padded(grad))
    sum_grads = gradient(_padded(x), grad)
  kernel_grad = combine(along_both_axes(transposed(_KERNEL)), sum_grads)
  return x_grad, kernel_grad.reshape(kernel.shape)


doubled_convolution.__wrapped__.defvjp(_forward, _backward)


def _is_by_strips(x: Array, kernel: Array) -> bool:
  b, h, w, _ = x.shape
  return are_many(b * h * w, kernel)


def _padded(x: Array) -> Array:
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _pixels(padded: Float[Array, "b h2 w2 c"]) -> Float[Array, "9 t c"]:
  """The transformed pixels of every neighbourhood of 3 x 3."""
  return _transform_windows(_differences, 3, 1, padded)


def _transform_windows(
  transform: Callable[[list], list],
  size: int,
  stride: int,
  x: Float[Array, "b h w c"],
) -> Float[Array, "9 t c"]:
  """M window M^T of every window of size x size pixels.

  Args:
    transform: multiplies a list of `size` by the matrix M, of three rows.
    stride: distance between windows, in pixels.
  """

  def along(axis: int, x: Array, place: int) -> Array:
    last = x.shape[axis] - size + 1
    cut = lambda i: lax.slice_in_dim(x, i, last + i, stride, axis)
    pieces = transform([cut(i) for i in range(size)])
    return lax.optimization_barrier(jnp.stack(pieces, place))

  return along(3, along(1, x, 0), 1).reshape(9, -1, x.shape[-1])


def _differences(d: list[Array]) -> list[Array]:
  """What of a neighbourhood meets each of the sums."""
  return [d[0] - d[1], d[1], d[1] - d[2]]


def _around(y: list[Array]) -> list[Array]:
  """What of a pixel's grads, and its neighbours', meets each of the sums."""
  return [y[3] - y[1], y[1] + y[2], y[0] - y[2]]
