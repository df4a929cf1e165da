"""Functions of strips of an image's lines, so that they stay in the cache."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import zeros_after

# Tiles of a strip: at a few hundred channels their transforms are a few MB.
_TILES = 256
_LEAST_LINES = 2  # of tiles: every strip transforms its neighbours, too


def are_many(tiles: int, kernel: Array) -> bool:
  """Whether strips are faster than the whole image at once.

  Every strip reads the transformed kernel from memory, which costs more than
  the cache saves where the kernel is larger than the image.
  """
  return tiles >= max(2 * max(kernel.shape[2:]), 2 * _TILES)


def lines_of_a_strip(height: int, tiles: int, size: int) -> int:
  """Lines of strips of about equal height, a multiple of `size`.

  Args:
    height: of the images, in pixels.
    tiles: in a line of tiles, of all images.
    size: height of a tile in pixels.
  """
  most = size * max(_TILES // tiles, _LEAST_LINES)
  strips = math.ceil(height / most)
  return size * math.ceil(height / strips / size)


def over_strips(
  function: Callable[[Array], Array], x: Float[Array, "b h w c"], lines: int
) -> Array:
  """`function` of every strip, one after the other, joined along the height.

  Args:
    function: of [b lines+2 w+2 c], a strip of all images with its neighbours
      (zeros outside of the images), to [b lines2 w2 d].
    x: filled with lines of zeros to a multiple of `lines`.
    lines: in a strip.
  """
  x, strips = _filled(x, lines)
  result = jax.eval_shape(lambda: function(_with_neighbours(x, 0, lines)))
  b, height, *others = result.shape

  def put(i: ArrayLike, out: Array) -> Array:
    strip = function(_with_neighbours(x, i, lines))
    return lax.dynamic_update_slice_in_dim(out, strip, i * height, 1)

  start = zeros_after(x, (b, strips * height, *others))
  return lax.fori_loop(0, strips, put, start)


def sum_over_strips(
  function: Callable[[Array, Array], Array],
  x: Float[Array, "b h w c"],
  other: Float[Array, "b h2 w2 d"],
  lines: int,
) -> Array:
  """The sum of `function` of the strips of two arrays of images.

  Args:
    function: of [b lines+2 w+2 c], as in `over_strips`, and of the same strip
      of the other, [b lines2 w2 d], without neighbours.
    x: filled with lines of zeros to a multiple of `lines`, as is the other.
    other: images of a multiple of x's height.
    lines: in a strip of x.
  """
  size = lines * (other.shape[1] // x.shape[1])
  (x, strips), (other, _) = _filled(x, lines), _filled(other, size)

  def result(i: ArrayLike) -> Array:
    strip = lax.dynamic_slice_in_dim(other, i * size, size, 1)
    return function(_with_neighbours(x, i, lines), strip)

  start = zeros_after(x, jax.eval_shape(result, 0).shape)
  return lax.fori_loop(0, strips, lambda i, total: total + result(i), start)


def _filled(x: Array, lines: int) -> tuple[Array, int]:
  """x with lines of zeros up to a multiple of `lines`, and its strips."""
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % lines), (0, 0), (0, 0)))
  return x, x.shape[1] // lines


def _with_neighbours(x: Array, i: ArrayLike, lines: int) -> Array:
  """Strip i of x and the pixels around it, [b lines+2 w+2 c]."""
  first, height = i * lines, x.shape[1]
  line = lambda number: lax.dynamic_slice_in_dim(x, number, 1, 1)
  strip = [
    jnp.where(first == 0, 0, line(jnp.maximum(first - 1, 0))),
    lax.dynamic_slice_in_dim(x, first, lines, 1),
    jnp.where(first + lines == height, 0, line(first + lines)),
  ]
  strip = jnp.concatenate(strip, axis=1)
  strip = jnp.pad(strip, ((0, 0), (0, 0), (1, 1), (0, 0)))
  return lax.optimization_barrier(strip)
