"""An image through the first stage: reconstruction, difference and latents."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pixels import to_float
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.sampling.inputs.files import read_rgb
from ldm_jax.sampling.inputs.resize import fit_image
from ldm_jax.sampling.latent_codec import LatentCodec
from ldm_jax.sampling.request import ImageLike

_AMPLIFIED = 4  # the difference that is shown

Image = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class FirstStageView:
  """An image and what the first stage makes of it.

  Attributes:
    image: as it was encoded.
    reconstruction: decode(mode of encode(image)).
    difference: 4 |image - reconstruction|, clipped.
    psnr: of the reconstruction, in decibels.
    latents: every channel in grey, from its smallest to its largest value.
    spread: smallest and largest value of all latents, scaled.
  """

  image: Image
  reconstruction: Image
  difference: Image
  psnr: float
  latents: UInt8[np.ndarray, "c h2 w2 3"]
  spread: tuple[float, float]


def view_first_stage(
  loaded: LoadedModel,
  image: ImageLike,
  *,
  tile: int | None = None,
  sharding: Sharding | None = None,
) -> FirstStageView:
  """Encodes and decodes an image by a model's first stage.

  Args:
    image: resized down to a multiple of what the networks divide by.
    tile: side in pixels of tiles, for large images.
    sharding: by default over all devices.

  Raises:
    ConfigError: the image is damaged.
  """
  pixels = read_rgb(image, "image")
  unit = loaded.model.size_multiple
  height, width = (max(unit, n // unit * unit) for n in pixels.shape[:2])
  pixels = fit_image(pixels, height, width)
  sharding = sharding or MeshShape().build()
  codec = LatentCodec(loaded.model, loaded.params, sharding)
  rows = np.broadcast_to(pixels, (sharding.batch_shards, *pixels.shape))
  latents = codec.encode(rows, tile=tile)
  reconstruction = codec.decode(latents, tile)[0]
  error = np.abs(pixels.astype(np.int16) - reconstruction)
  channels = np.asarray(latents[0], np.float32)
  pair = (to_float(jnp.asarray(x[None])) for x in (pixels, reconstruction))
  return FirstStageView(
    pixels,
    reconstruction,
    np.minimum(_AMPLIFIED * error, 255).astype(np.uint8),
    float(psnr(*pair)[0]),
    np.stack([_grey(plane) for plane in np.moveaxis(channels, 2, 0)]),
    (float(channels.min()), float(channels.max())),
  )


def _grey(plane: np.ndarray) -> np.ndarray:
  """A channel from black at its minimum to white at its maximum."""
  low, high = plane.min(), plane.max()
  grey = 255 * (plane - low) / max(float(high - low), 1e-6)
  return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
