"""Power of images and of errors by frequency, averaged over directions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

# Cycles per pixel; the last band has the corners of the spectrum too.
IMAGE_BANDS = {
  "0-1/32": (0.0, 1 / 32),
  "1/32-1/16": (1 / 32, 1 / 16),
  "1/16-1/8": (1 / 16, 1 / 8),
  "1/8-1/4": (1 / 8, 1 / 4),
  "1/4-1/2": (1 / 4, 1.0),
}
# Cycles per latent.
LATENT_BANDS = {
  "0-1/8": (0.0, 1 / 8),
  "1/8-1/4": (1 / 8, 1 / 4),
  "1/4-1/2": (1 / 4, 1.0),
}


class _Spectrum(NamedTuple):
  """Frequencies of a discrete Fourier transform in a band."""

  name: str
  is_inside: Bool[np.ndarray, "h w"]


def frequency_error(
  images: Shaped[np.ndarray, "n h w c"],
  reconstructions: Shaped[np.ndarray, "n h w c"],
) -> dict[str, float]:
  """sum |F e|^2 / sum |F x|^2 over the frequencies of each band.

  F is the Fourier transform under a Hann window, e the difference of an image
  and its reconstruction, x the image, both less their means under the window.
  Sums are over all images, channels and directions. 0 is no error, 1 is what a
  uniform image has; an error above 1 is larger than the image's own detail.

  Returns:
    by band, in cycles per pixel; bands without power in the images are left
    out.
  """
  _, height, width, _ = images.shape
  window = np.outer(_hann(height), _hann(width))[..., None]
  bands = _bands(height, width, IMAGE_BANDS)
  sums = np.zeros((2, len(bands)))
  for image, other in zip(images, reconstructions, strict=True):
    image, other = (np.asarray(x, np.float64) for x in (image, other))
    for row, x in enumerate((other - image, image)):
      mean = (x * window).sum((0, 1)) / window.sum()
      power = _power((x - mean) * window)
      sums[row] += [power[band.is_inside].sum() for band in bands]
  return {
    band.name: float(error / total)
    for band, error, total in zip(bands, *sums, strict=True)
    if total > 1e-12 * sums[1].sum()
  }


def latent_spectrum(
  latents: Float[np.ndarray, "n h w c"],
) -> dict[str, float]:
  """Mean power of latents in each band, as a multiple of that of all bands.

  White noise has 1 everywhere, smooth latents have most in the first band.
  Every channel is divided by its deviation first; means are left out.

  Returns:
    by band, in cycles per latent; bands without a frequency are left out, and
    so are all if the latents are constant.
  """
  _, height, width, _ = latents.shape
  bands = _bands(height, width, LATENT_BANDS)
  latents = np.asarray(latents, np.float64)
  std = latents.std((0, 1, 2))
  if not std.any():
    return {}
  power = sum(_power(x / np.where(std > 0, std, 1)) for x in latents)
  everything = np.logical_or.reduce([band.is_inside for band in bands])
  mean = power[everything].mean()
  return {
    band.name: float(power[band.is_inside].mean() / mean)
    for band in bands
    if band.is_inside.any() and mean > 0
  }


def _bands(
  height: int, width: int, edges: dict[str, tuple[float, float]]
) -> list[_Spectrum]:
  """The bands of a transform of this size, without the frequency 0."""
  radius = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
  )
  return [
    _Spectrum(name, (radius > low) & (radius <= high))
    for name, (low, high) in edges.items()
  ]


def _power(x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w"]:
  """|F x|^2, summed over the channels."""
  return np.square(np.abs(np.fft.fft2(x, axes=(0, 1)))).sum(-1)


def _hann(length: int) -> Float[np.ndarray, " length"]:
  return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
