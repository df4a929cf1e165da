"""Degraded low-resolution copies of images, for super-resolution."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from ldm_jax.errors import DataError
from ldm_jax.fields.limits import Count

_FILTERS = (
  Image.Resampling.BILINEAR,
  Image.Resampling.BICUBIC,
  Image.Resampling.BOX,
)


@dataclasses.dataclass(frozen=True)
class Degradation:
  """Reads "image" and writes "low", smaller by `factor` along both axes.

  "area": the mean of every factor x factor pixels. "bicubic": with
  antialiasing. "bsrgan": a light form of BSRGAN's pipeline (Zhang et al. 2021,
  section 3), with which LDM's super-resolution model was trained (Rombach et
  al. 2022, appendix D.6): in random order

    two blurs, each isotropic or not, of a standard deviation to
      0.1 + factor / 10 (isotropic) or 1 + factor / 4 (each axis),
    a first downsampling by U(1, 2 factor), or by striding after a blur,
    Gaussian noise, grey or coloured, of sigma 1 or 2 of 255,
    JPEG of quality 80 to 95 with probability 0.9,

  then downsampling to the final size by a random filter, and JPEG once more.
  The first downsampling never goes below the final size.

  Attributes:
    factor: of each side; the image must divide by it.
    kind: see above.
  """

  factor: Count = 4
  kind: Literal["area", "bicubic", "bsrgan"] = "bsrgan"

  output_key = "low"

  def __post_init__(self):
    if self.factor < 2:
      raise ValueError(f"Degradation.factor={self.factor} must be 2 or more")

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator
  ) -> UInt8[np.ndarray, "h w 3"]:
    """The low-resolution copy.

    Raises:
      DataError: the image does not divide by the factor.
    """
    image = item["image"]
    height, width = image.shape[:2]
    if height % self.factor or width % self.factor:
      raise DataError(
        f"an image of {height} x {width} does not divide by the degradation's "
        f"factor {self.factor}; set augment to a size that does"
      )
    size = (height // self.factor, width // self.factor)
    if self.kind == "area":
      return area(image, self.factor)
    if self.kind == "bicubic":
      return _bytes(_resized(image, size, Image.Resampling.BICUBIC))
    return self._bsrgan(image.astype(np.float32), size, rng)

  def _bsrgan(
    self,
    image: Float[np.ndarray, "h w 3"],
    size: tuple[int, int],
    rng: np.random.Generator,
  ) -> UInt8[np.ndarray, "h2 w2 3"]:
    steps = [
      self._blurred,
      self._blurred,
      lambda x, rng: self._downsampled(x, size, rng),
      _noisy,
      _compressed,
    ]
    for number in rng.permutation(len(steps)):
      image = steps[number](image, rng)
    last = _FILTERS[rng.integers(len(_FILTERS))]
    image = _resized(image, size, last)
    return _bytes(_jpeg(image, int(rng.integers(80, 96))))

  def _blurred(self, image, rng):
    if rng.random() < 0.5:
      sigmas = np.full(2, rng.uniform(0, 0.1 + self.factor / 10))
      angle = 0.0
    else:
      sigmas = rng.uniform(0.1, 1 + self.factor / 4, 2)
      angle = rng.uniform(0, np.pi)
    return _convolved(image, _gaussian(sigmas, angle))

  def _downsampled(self, image, size, rng):
    height, width = image.shape[:2]
    if rng.random() < 0.8:
      scale = rng.uniform(1, 2 * self.factor)
      smaller = (
        max(size[0], round(height / scale)),
        max(size[1], round(width / scale)),
      )
      return _resized(image, smaller, _FILTERS[rng.integers(len(_FILTERS))])
    sigma = rng.uniform(0.1, 0.6 * self.factor)
    blurred = _convolved(image, _gaussian(np.full(2, sigma), 0.0))
    # The pixel that is kept represents its cell: sample at the cell's middle.
    middle = (self.factor - 1) / 2
    moved = ndimage.shift(
      blurred, (-middle, -middle, 0), order=1, mode="nearest"
    )
    return moved[:: self.factor, :: self.factor]


def area(
  image: UInt8[np.ndarray, "h w 3"], factor: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Area downsampling: the mean of every factor x factor pixels, rounded."""
  height, width = image.shape[0] // factor, image.shape[1] // factor
  cells = image.reshape(height, factor, width, factor, 3)
  return _bytes(cells.astype(np.float32).mean((1, 3)))


def _gaussian(
  sigmas: Float[np.ndarray, "2"], angle: float
) -> Float[np.ndarray, "k k"]:
  """A normalised Gaussian kernel with these deviations along rotated axes."""
  reach = max(1, int(np.ceil(3 * sigmas.max())))
  v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
  along = u * np.cos(angle) + v * np.sin(angle)
  across = v * np.cos(angle) - u * np.sin(angle)
  width = np.maximum(sigmas, 1e-3)
  kernel = np.exp(-((along / width[0]) ** 2 + (across / width[1]) ** 2) / 2)
  return kernel / kernel.sum()


def _convolved(image, kernel):
  return ndimage.convolve(image, kernel[..., None], mode="mirror")


def _noisy(image, rng):
  sigma = rng.integers(1, 3)
  is_grey = rng.random() < 0.4
  shape = (*image.shape[:2], 1 if is_grey else 3)
  return np.clip(image + rng.normal(0, sigma, shape), 0, 255)


def _compressed(image, rng):
  quality = int(rng.integers(80, 96))
  return _jpeg(image, quality) if rng.random() < 0.9 else image


def _jpeg(image, quality):
  file = io.BytesIO()
  Image.fromarray(_bytes(image)).save(file, "JPEG", quality=quality)
  return np.asarray(Image.open(file, formats=["JPEG"]), np.float32)


def _resized(image, size, method):
  """Resizes to (height, width) in float32, one channel at a time."""
  planes = [
    np.asarray(
      Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(
        (size[1], size[0]), method
      )
    )
    for plane in np.moveaxis(image, -1, 0)
  ]
  return np.stack(planes, axis=-1)


def _bytes(image) -> UInt8[np.ndarray, "h w 3"]:
  return np.clip(np.round(image), 0, 255).astype(np.uint8)
