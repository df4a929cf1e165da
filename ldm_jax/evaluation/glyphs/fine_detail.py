"""How much fine detail of `Glyphs` level 1 reconstructions preserve.

Positions of the details are known from the scene; nothing here is learned.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax.data.glyphs.scenes import (
  TEXTURES,
  Scene,
  Thing,
  centre,
  paint,
  place,
)

Images = UInt8[np.ndarray, "b h w 3"]

NUMBERS = range(10, 100)
WIDTH, HEIGHT = 9, 7  # pixels of the field that holds a number
FINE = (TEXTURES.index("striped"), TEXTURES.index("checkered"))


def numbers_read(images: Images, scenes: Sequence[Scene]) -> float:
  """The fraction of images whose number is nearest to the scene's number.

  All 90 numbers are compared, by squared error in the field of the number.
  """
  is_right = []
  for image, scene in zip(images, scenes, strict=True):
    rows, columns = _field(scene, len(image))
    field = image[rows, columns].astype(float)
    errors = [
      np.square(field - paint(scene._replace(number=n))[0][rows, columns]).sum()
      for n in NUMBERS
    ]
    is_right.append(NUMBERS[int(np.argmin(errors))] == scene.number)
  return float(np.mean(is_right))


def grating_contrast(images: Images, scenes: Sequence[Scene]) -> float:
  """Contrast of the gratings of 1-pixel lines over that of the originals.

  1 preserves them, 0 leaves a uniform grey. Gratings that an object covers are
  left out.
  """
  found = []
  for image, scene in zip(images, scenes, strict=True):
    x, y = centre(scene.level, Thing(0, 0, 0, 0, scene.grating))
    patch = np.s_[y - 5 : y + 5, x - 5 : x + 5]
    real, segmap = paint(scene)
    if segmap[patch].any():
      continue
    found.append(
      _line_contrast(image[patch], scene) / _line_contrast(real[patch], scene)
    )
  return float(np.mean(found))


def texture_kept(images: Images, scenes: Sequence[Scene]) -> float:
  """Correlation of the high frequencies of striped and checkered objects with
  those of the originals, at most 1.

  High frequencies are what differs from the mean over 3 x 3 pixels.
  """
  found = []
  for image, scene in zip(images, scenes, strict=True):
    real = paint(scene)[0]
    for thing in scene.things:
      if thing.texture not in FINE:
        continue
      window, _ = place(scene.level, thing)
      ours, theirs = (_high_pass(x)[window].ravel() for x in (image, real))
      lengths = np.linalg.norm(ours) * np.linalg.norm(theirs)
      found.append(ours @ theirs / lengths if lengths else 0.0)
  return float(np.mean(found))


def _field(scene: Scene, side: int) -> tuple[slice, slice]:
  """Rows and columns of the number."""
  left = 0 if scene.corner % 3 == 0 else side - WIDTH
  top = 0 if scene.corner < 3 else side - HEIGHT
  return slice(top, top + HEIGHT), slice(left, left + WIDTH)


def _line_contrast(patch: UInt8[np.ndarray, "10 10 3"], scene: Scene) -> float:
  """The mean of the even lines minus that of the odd ones."""
  lines = patch.astype(float).mean(2).mean(0 if scene.upright else 1)
  return float(lines[::2].mean() - lines[1::2].mean())


def _high_pass(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
  """An image minus its mean over 3 x 3 pixels."""
  padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), "edge")
  height, width, _ = image.shape
  parts = [
    padded[i : i + height, j : j + width] for i in range(3) for j in range(3)
  ]
  return image - sum(parts) / 9
