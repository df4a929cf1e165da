"""Overlapping windows, blended by the distance to their borders.

One window is computed at a time, so that memory does not grow with the image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.diffusion.prediction import Denoiser, Estimate
from ldm_jax.diffusion.schedule import Level

OVERLAP = 0.25  # of a window's side, at least
# LDM's split_input_params: weights of a pixel by its distance to the border,
# in sides; 0.5 is the middle.
LEAST, MOST = 0.01, 0.5

# Cuts [b h w c] to the window; h may be any multiple of the latents'.
Crop = Callable[[Float[Array, "b h w c"]], Float[Array, "b h2 w2 c"]]


def starts(length: int, side: int) -> list[int]:
  """Offsets of windows of `side` that cover `length` evenly."""
  if length <= side:
    return [0]
  count = -(-(length - side) // max(1, round(side * (1 - OVERLAP)))) + 1
  return [round(i * (length - side) / (count - 1)) for i in range(count)]


def weights(height: int, width: int) -> Float[np.ndarray, "h w"]:
  """Distance to the nearest border, in sides, kept within [0.01, 0.5]."""
  near = lambda n: np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n
  nearest = np.minimum(near(height)[:, None], near(width)[None])
  return np.clip(nearest, LEAST, MOST).astype(np.float32)


def blend(
  function: Callable[[Crop], Array],
  size: tuple[int, int],
  side: int,
  factor: int = 1,
) -> tuple[Float[Array, "b H W c"], Float[Array, ""]]:
  """Applies a function to every window and blends the results.

  Args:
    function: of a window's `Crop`, [b h w c].
    size: of the whole, in units of latents.
    side: of a window, in the same.
    factor: side of the function's results over that of its windows.

  Returns:
    The whole, and the root mean square of what windows differ by from it
    where they overlap.
  """
  high, wide = min(size[0], side), min(size[1], side)
  tops, lefts = starts(size[0], side), starts(size[1], side)
  places = [(top, left) for top in tops for left in lefts]
  weight = weights(high * factor, wide * factor)
  total = np.zeros((size[0] * factor, size[1] * factor), np.float32)
  count = np.zeros_like(total)
  for top, left in places:
    where = np.s_[
      top * factor : (top + high) * factor,
      left * factor : (left + wide) * factor,
    ]
    total[where] += weight
    count[where] += 1

  def evaluate(place: Array) -> Array:
    def crop(array: Array) -> Array:
      scale = array.shape[1] // size[0]
      begin = (0, place[0] * scale, place[1] * scale, 0)
      shape = (len(array), high * scale, wide * scale, array.shape[3])
      return jax.lax.dynamic_slice(array, begin, shape)

    return function(crop)

  def add(sums: tuple[Array, Array], place: Array):
    result = evaluate(place)
    begin = (0, place[0] * factor, place[1] * factor, 0)
    added = []
    for held, value in zip(sums, (result, result**2), strict=True):
      shape = (len(held), *result.shape[1:])
      old = jax.lax.dynamic_slice(held, begin, shape)
      new = old + weight[..., None] * value
      added.append(jax.lax.dynamic_update_slice(held, new, begin))
    return tuple(added), None

  first = jax.eval_shape(evaluate, jnp.zeros(2, jnp.int32))
  empty = jnp.zeros((first.shape[0], *total.shape, first.shape[3]), first.dtype)
  sums, _ = jax.lax.scan(add, (empty, empty), jnp.asarray(places))
  whole, square = (held / total[..., None] for held in sums)
  shared = (count > 1)[..., None]
  spread = jnp.maximum(square - whole**2, 0) * shared
  cells = max(1, shared.sum()) * first.shape[0] * first.shape[3]
  return whole, jnp.sqrt(spread.sum() / cells)


def windowed(
  make: Callable[[Crop], Denoiser], size: tuple[int, int], side: int
) -> Denoiser:
  """Denoises window by window  (LDM's patch-wise sampling, appendix D.1).

  Args:
    make: of a crop, the denoiser whose spatial conditions are cut by it.
    size: of the latents.
    side: of a window, in latents.
  """

  def denoise(xt: Array, level: Level) -> Estimate:
    def both(crop: Crop) -> Array:
      x0, eps = make(crop)(crop(xt), level)
      return jnp.concatenate([x0, eps], axis=-1)

    blended, _ = blend(both, size, side)
    return Estimate(*jnp.split(blended, 2, axis=-1))

  return denoise
