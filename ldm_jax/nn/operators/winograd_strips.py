"""Winograd's convolution of large images: a loop over strips of lines.

All 16 products of a strip are one batched product; see `winograd`.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.strips import (
  lines_of_a_strip,
  over_strips,
  sum_over_strips,
)
from ldm_jax.nn.operators.transforms import (
  along_both_axes,
  combine,
  interleave,
  products,
  split_windows,
  transform_taps,
)
from ldm_jax.nn.operators.winograd_transforms import (
  GATHER,
  KERNEL,
  OUTPUTS,
  SPREAD,
  transform_pixels,
)


def convolution_by_strips(
  x: Float[Array, "b h w c"], kernel: Array, is_turned: bool = False
) -> Float[Array, "b h w d"]:
  """A^T [(G g G^T) * (B^T d B)] A for every tile d of 4 x 4 pixels.

  Args:
    kernel: [3 3 c d], or [3 3 d c] if it is turned by half a turn.
  """
  batch, height, width, _ = x.shape
  weights = transform_taps(KERNEL, kernel, is_turned)

  def convolve(strip: Array) -> Array:
    found = products(_pixels(strip), weights, is_turned)
    found = lax.optimization_barrier(found)
    cells = combine(along_both_axes(OUTPUTS), found)
    _, h, w, _ = strip.shape
    return interleave(cells, batch, h // 2 - 1, w // 2 - 1)[:, :, :width]

  return over_strips(convolve, _even(x), _lines(x))[:, :height]


def kernel_gradient_by_strips(
  x: Float[Array, "b h w c"], grad: Float[Array, "b h w d"]
) -> Float[Array, "3 3 c d"]:
  """G^T [sum over tiles of (B^T d B) (A dY A^T)] G."""

  def gradient(strip: Array, grads: Array) -> Array:
    spread = combine(along_both_axes(SPREAD), split_windows(grads))
    spread = lax.optimization_barrier(spread)
    return jnp.einsum("ntc,ntd->ncd", _pixels(strip), spread)

  sums = sum_over_strips(gradient, _even(x), _even(grad), _lines(x))
  found = combine(along_both_axes(GATHER), sums)
  return found.reshape(3, 3, *found.shape[1:])


def _lines(x: Array) -> int:
  b, h, w, _ = x.shape
  return lines_of_a_strip(h, b * ((w + 1) // 2), 2)


def _even(x: Array) -> Array:
  """x with a column of zeros, if its width is odd."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)))


def _pixels(strip: Float[Array, "b h w c"]) -> Float[Array, "16 t c"]:
  """B^T d B of every tile of 4 x 4 pixels."""
  b, h, w, c = strip.shape
  th, tw = h // 2 - 1, w // 2 - 1
  lines = strip.reshape(b, th + 1, 2, w, c)
  lines = [lines[:, i // 2 : i // 2 + th, i % 2] for i in range(4)]
  lines = lax.optimization_barrier(jnp.stack(transform_pixels(lines)))
  pixels = lines.reshape(4, b, th, tw + 1, 2, c)
  pixels = [pixels[:, :, :, j // 2 : j // 2 + tw, j % 2] for j in range(4)]
  pixels = jnp.stack(transform_pixels(pixels), 1).reshape(16, -1, c)
  return lax.optimization_barrier(pixels)
