"""Inpainting, interpolation of noise, and noise augmentation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from ldm_jax.concat_conditioning import NoiseAugmentation
from ldm_jax.diffusion.samplers import normal
from ldm_jax.diffusion.schedule import Level, append_dims


class KnownRegion(NamedTuple):
  """The part of an image that inpainting keeps.

  Attributes:
    latents: of the image.
    noise: the same at every level.
    mask: [b h w 1], true where new content is generated.
  """

  latents: Any
  noise: Any
  mask: Any

  def mend(
    self, x: Float[Array, "b h w c"], level: Level
  ) -> Float[Array, "b h w c"]:
    """q(x_t | image) in the kept region  (Lugmayr et al. 2022, eq. 8)."""
    kept = level.signal * self.latents + level.sigma * self.noise
    return jnp.where(self.mask, x, kept)


def slerp(
  a: Float[Array, "b h w c"],
  b: Float[Array, "b h w c"],
  fraction: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
  """Spherical interpolation from a (0) to b (1), which keeps the norm of noise.

  (sin((1 - s) w) a + sin(s w) b) / sin w, w the angle between  (Shoemake 1985).
  """
  axes = tuple(range(1, a.ndim))
  length = lambda x: jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))
  cosine = jnp.sum(a * b, axes, keepdims=True) / (length(a) * length(b))
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))
  fraction = append_dims(fraction, a)
  is_same = jnp.sin(angle) < 1e-6
  sine = jnp.where(is_same, 1.0, jnp.sin(angle))
  curved = jnp.sin((1 - fraction) * angle) * a + jnp.sin(fraction * angle) * b
  return jnp.where(is_same, (1 - fraction) * a + fraction * b, curved / sine)


def latent_mask(
  masks: Bool[np.ndarray, "b H W"], stride: int
) -> Bool[np.ndarray, "b h w 1"]:
  """The mask of latents: true where any pixel of the cell is."""
  count, height, width = masks.shape
  cells = masks.reshape(
    count, height // stride, stride, width // stride, stride
  )
  return cells.any((2, 4))[..., None]


def paste(
  generated: UInt8[np.ndarray, "b H W 3"],
  images: UInt8[np.ndarray, "b H W 3"],
  masks: Bool[np.ndarray, "b H W"],
) -> UInt8[np.ndarray, "b H W 3"]:
  """The generated image inside the mask; outside, the original exactly."""
  return np.where(masks[..., None], generated, images)


def noise_augmentation(
  shape: tuple[int, int, int], level: float | int, keys: Array
) -> NoiseAugmentation:
  """Noise for the low-resolution images of an upscaler."""
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31 - 1)
  return NoiseAugmentation(
    jnp.full(len(keys), level, jnp.float32), normal(keys, shape)
  )
