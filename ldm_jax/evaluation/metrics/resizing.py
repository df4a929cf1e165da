"""The two resizing modes of images for Inception.

Numbers of one mode cannot be compared with numbers of the other
(Parmar et al. 2022, "On Aliased Resizing").
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

ResizeMode = Literal["legacy", "clean"]


def resized(
  images: UInt8[Array, "b h w 3"], side: int, mode: ResizeMode
) -> Float[Array, "b side side 3"]:
  """Images of `side` x `side`, grey levels from 0 to 255, not rounded."""
  return legacy(images, side) if mode == "legacy" else clean(images, side)


def legacy(
  images: UInt8[Array, "b h w 3"], side: int
) -> Float[Array, "b side side 3"]:
  """TensorFlow 1's bilinear interpolation, as in the Inception graph of 2015.

  Pixel i of n lies at i h / n, without the half pixel, and there is no
  antialiasing. ADM, DiT and torch-fidelity use this mode.
  """
  x = images.astype(jnp.float32)
  for axis in (2, 1):
    size = x.shape[axis]
    positions = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = np.floor(positions).astype(int)
    high = np.minimum(low + 1, size - 1)
    shape = [1] * x.ndim
    shape[axis] = side
    fraction = (positions - low).astype(np.float32).reshape(shape)
    first, second = (jnp.take(x, rows, axis) for rows in (low, high))
    x = first + (second - first) * fraction
  return x


def clean(
  images: UInt8[Array, "b h w 3"], side: int
) -> Float[Array, "b side side 3"]:
  """Bicubic with antialiasing, in floats, clipped (Parmar et al. 2022)."""
  x = images.astype(jnp.float32)
  if x.shape[1:3] == (side, side):
    return x
  shape = (x.shape[0], side, side, x.shape[3])
  x = jax.image.resize(x, shape, "cubic", precision=jax.lax.Precision.HIGHEST)
  return jnp.clip(x, 0, 255)
