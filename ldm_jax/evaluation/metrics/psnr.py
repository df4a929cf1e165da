"""Peak signal-to-noise ratio."""

import numpy as np
from jaxtyping import Array, Float


def psnr(
  images: Float[Array | np.ndarray, "b h w c"],
  reconstructions: Float[Array | np.ndarray, "b h w c"],
) -> Float[Array | np.ndarray, " b"]:
  """10 log10(255^2 / MSE) of each image, in decibels.

  Both are first brought from [-1, 1] to whole grey levels in [0, 255], rounded
  half up and clipped, as a saved PNG would be. The mean squared error is taken
  over all pixels and channels of one image; report the mean of the results,
  not the ratio of a mean error. Equal images give infinity. Works in numpy
  and, also under jit, in jax.
  """
  xp = images.__array_namespace__()
  errors = _to_levels(xp, images) - _to_levels(xp, reconstructions)
  mse = xp.mean(errors**2, axis=(1, 2, 3))
  with np.errstate(divide="ignore"):
    return -10.0 * xp.log10(mse / 255.0**2)


def _to_levels(xp, images):
  levels = xp.floor((images.astype(xp.float32) + 1.0) * 127.5 + 0.5)
  return xp.clip(levels, 0.0, 255.0)
