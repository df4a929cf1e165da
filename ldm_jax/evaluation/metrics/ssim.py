"""Structural similarity."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

WIDTH, SIGMA = 11, 1.5  # of the Gaussian window
STABILIZERS = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(
  images: UInt8[Array, "b h w c"], others: UInt8[Array, "b h w c"]
) -> Float[Array, " b"]:
  """SSIM of each pair, from -1 to 1 (Wang et al. 2004, eq. 13).

  Gaussian window of 11 x 11 (sigma 1.5), biased moments, each channel on its
  own, and the mean over all positions where the window lies inside the image.

  Raises:
    ValueError: the images are smaller than the window.
  """
  if min(images.shape[1:3]) < WIDTH:
    raise ValueError(
      f"images of {images.shape[1:3]}; each side must be {WIDTH} or more"
    )
  x, y = (a.astype(jnp.float32) for a in (images, others))
  # Centred, so that squares lose fewer digits.
  x, y = x - 127.5, y - 127.5
  mx, my = _blurred(x), _blurred(y)
  covariance = lambda a, b, ma, mb: _blurred(a * b) - ma * mb
  xx, yy, xy = (
    covariance(x, x, mx, mx),
    covariance(y, y, my, my),
    covariance(x, y, mx, my),
  )
  mx, my = mx + 127.5, my + 127.5
  first, second = STABILIZERS
  luminance = (2 * mx * my + first) / (mx * mx + my * my + first)
  return (luminance * (2 * xy + second) / (xx + yy + second)).mean((1, 2, 3))


def _blurred(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
  """Means under the window, where it lies inside the image."""
  places = np.arange(WIDTH) - WIDTH // 2
  window = np.exp(-(places**2) / (2 * SIGMA**2))
  window = (window / window.sum()).astype(np.float32)
  for shape in ((WIDTH, 1, 1, 1), (1, WIDTH, 1, 1)):
    kernel = jnp.tile(window.reshape(shape), (1, 1, 1, x.shape[-1]))
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=x.shape[-1],
      precision=jax.lax.Precision.HIGHEST,
    )
  return x
