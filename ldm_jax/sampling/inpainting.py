"""Pictures that are given, as a sampler's beginning and a network's input."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from ldm_jax.concat_conditioning import NoiseAugmentation
from ldm_jax.diffusion.samplers import normal
from ldm_jax.diffusion.schedule import Level, like


class KnownRegion(NamedTuple):
  """What is kept of an image while the rest is drawn.

  Attributes:
    latents: of the image.
    noise: its own, the same at every level.
    mask: [b h w 1], true where something new is drawn.
  """

  latents: Any
  noise: Any
  mask: Any

  def mend(
    self, x: Float[Array, "b h w c"], level: Level
  ) -> Float[Array, "b h w c"]:
    """Puts q(x_t | image) where it is kept  (Lugmayr et al. 2022, eq. 8)."""
    kept = level.signal * self.latents + level.sigma * self.noise
    return jnp.where(self.mask, x, kept)


def slerp(
  a: Float[Array, "b h w c"],
  b: Float[Array, "b h w c"],
  share: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
  """From a (0) to b (1) on the sphere, which keeps noise as long as noise is.

  Shoemake 1985: (sin((1 - s) w) a + sin(s w) b) / sin w, w the angle between.
  """
  axes = tuple(range(1, a.ndim))
  length = lambda x: jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))
  cosine = jnp.sum(a * b, axes, keepdims=True) / (length(a) * length(b))
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))
  share = like(share, a)
  is_same = jnp.sin(angle) < 1e-6
  sine = jnp.where(is_same, 1.0, jnp.sin(angle))
  curved = jnp.sin((1 - share) * angle) * a + jnp.sin(share * angle) * b
  return jnp.where(is_same, (1 - share) * a + share * b, curved / sine)


def latent_mask(
  masks: Bool[np.ndarray, "b H W"], stride: int
) -> Bool[np.ndarray, "b h w 1"]:
  """A mask of latents: true where any pixel of the cell is."""
  count, height, width = masks.shape
  cells = masks.reshape(
    count, height // stride, stride, width // stride, stride
  )
  return cells.any((2, 4))[..., None]


def paste(
  drawn: UInt8[np.ndarray, "b H W 3"],
  images: UInt8[np.ndarray, "b H W 3"],
  masks: Bool[np.ndarray, "b H W"],
) -> UInt8[np.ndarray, "b H W 3"]:
  """What was drawn inside the mask; outside, the image to the last bit."""
  return np.where(masks[..., None], drawn, images)


def noise_augmentation(
  shape: tuple[int, int, int], level: float | int, keys: Array
) -> NoiseAugmentation:
  """Noise for the small pictures of an upscaler."""
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31 - 1)
  return NoiseAugmentation(
    jnp.full(len(keys), level, jnp.float32), normal(keys, shape)
  )
