"""A 3 x 3 convolution as one product of matrices (Chellapilla et al. 2006)."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import zeros_after


@jax.jit
@jax.custom_vjp
def im2col_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
  """A 3 x 3 convolution of stride 1, padded with one zero on every side."""
  products = columns(x) @ kernel.reshape(-1, kernel.shape[-1])
  return products.reshape(*x.shape[:3], -1)


def columns(x: Array) -> Array:
  """[b*h*w 9c]: the neighbourhood of every pixel.

  A loop over the 9 compiles in half the time of one concatenation.
  """
  b, h, w, c = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  padded = lax.optimization_barrier(padded)

  def put(tap: ArrayLike, out: Array) -> Array:
    cut = lax.dynamic_slice(padded, (0, tap // 3, tap % 3, 0), x.shape)
    return lax.dynamic_update_slice(out, cut[:, :, :, None], (0, 0, 0, tap, 0))

  start = zeros_after(x, (b, h, w, 9, c))
  return lax.fori_loop(0, 9, put, start).reshape(b * h * w, 9 * c)


def sum_columns(
  values: Float[Array, "p q"], shape: tuple[int, int, int, int]
) -> Float[Array, "b h w c"]:
  """The transpose of `columns`: every pixel's sum over its neighbourhoods."""
  b, h, w, c = shape
  values = values.reshape(b, h, w, 3, 3, c)
  values = jnp.pad(values, ((0, 0), (1, 1), (1, 1)) + ((0, 0),) * 3)
  taps = [
    values[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w, i, j]
    for i in range(3)
    for j in range(3)
  ]
  return sum(taps)


def _forward(x: Array, kernel: Array):
  return im2col_convolution(x, kernel), (x, kernel)


@jax.jit
def _backward(saved: tuple[Array, Array], grad: Array):
  x, kernel = saved
  rows = grad.reshape(-1, grad.shape[-1])
  kernel_grad = (columns(x).T @ rows).reshape(kernel.shape)
  # The kernel is read as it is stored: turning it takes longer than a product.
  column_grads = lax.dot_general(
    rows,
    kernel.reshape(-1, kernel.shape[-1]),
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return sum_columns(column_grads, x.shape).astype(x.dtype), kernel_grad


im2col_convolution.__wrapped__.defvjp(_forward, _backward)
