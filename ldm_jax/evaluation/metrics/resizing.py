"""Two ways to bring pictures to the size that Inception reads.

Numbers made in one of them mean nothing beside numbers made in the other.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

World = Literal["legacy", "clean"]


def resized(
  images: UInt8[Array, "b h w 3"], side: int, world: World
) -> Float[Array, "b side side 3"]:
  """Pictures of `side` x `side`, grey levels from 0 to 255, not rounded."""
  return legacy(images, side) if world == "legacy" else clean(images, side)


def legacy(
  images: UInt8[Array, "b h w 3"], side: int
) -> Float[Array, "b side side 3"]:
  """TensorFlow 1's bilinear interpolation, as inside the graph of 2015.

  Pixel i of n lies at i h / n, without the half pixel, and nothing is averaged
  where pictures shrink. So did ADM, DiT and torch-fidelity.
  """
  x = images.astype(jnp.float32)
  for axis in (2, 1):
    size = x.shape[axis]
    places = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, size - 1)
    shape = [1] * x.ndim
    shape[axis] = side
    part = (places - low).astype(np.float32).reshape(shape)
    first, second = (jnp.take(x, rows, axis) for rows in (low, high))
    x = first + (second - first) * part
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
