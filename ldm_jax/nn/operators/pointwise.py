"""Convolutions of 1 x 1, and of 3 x 3 to few channels, as one product.

XLA:CPU transposes images for the gradients of such kernels, which takes several
times as long as the products.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.operators.im2col import columns, sum_columns
from ldm_jax.nn.operators.transforms import rows


def pointwise_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"]
) -> Float[Array, "b h w d"]:
  """Every pixel's product with the kernel."""
  return (rows(x) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


@jax.jit
@jax.custom_vjp
def few_outputs_convolution(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
  """The 9 products of every pixel, summed over the neighbourhoods.

  Those are d / c of im2col's columns. The image is padded with one zero on
  every side.
  """
  shape = (*x.shape[:3], kernel.shape[-1])
  return sum_columns(rows(x) @ _matrix(kernel), shape)


def _matrix(kernel: Array) -> Array:
  """The taps in reverse, concatenated, [c 9*d]."""
  c, d = kernel.shape[2:]
  return jnp.flip(kernel, (0, 1)).transpose(2, 0, 1, 3).reshape(c, 9 * d)


def _forward(x: Array, kernel: Array):
  return few_outputs_convolution(x, kernel), (x, kernel)


@jax.jit
def _backward(saved: tuple[Array, Array], grad: Array):
  x, kernel = saved
  grads = columns(grad)
  x_grad = (grads @ _matrix(kernel).T).reshape(x.shape)
  taps = (rows(x).T @ grads).reshape(-1, 3, 3, kernel.shape[-1])
  return x_grad, jnp.flip(taps.transpose(1, 2, 0, 3), (0, 1))


few_outputs_convolution.__wrapped__.defvjp(_forward, _backward)
