"""What a bottleneck keeps of the finest details of `Glyphs` level 1.

Where they are is known from the scene; nothing here is learned.
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
WIDE, HIGH = 9, 7  # pixels of the field that a number is written in
FINE = (TEXTURES.index("striped"), TEXTURES.index("checkered"))


def numbers_read(images: Images, scenes: Sequence[Scene]) -> float:
  """The share of images whose number is nearer to what was written than to any
  of the 89 others, by squared error in the field."""
  right = []
  for image, scene in zip(images, scenes, strict=True):
    rows, columns = _field(scene, len(image))
    seen = image[rows, columns].astype(float)
    away = [
      np.square(seen - paint(scene._replace(number=n))[0][rows, columns]).sum()
      for n in NUMBERS
    ]
    right.append(NUMBERS[int(np.argmin(away))] == scene.number)
  return float(np.mean(right))


def grating_contrast(images: Images, scenes: Sequence[Scene]) -> float:
  """How far light lines of a pixel are from dark ones, over what they were: 1
  keeps them, 0 leaves an even grey.

  Gratings that an object covers are left out.
  """
  found = []
  for image, scene in zip(images, scenes, strict=True):
    x, y = centre(scene.level, Thing(0, 0, 0, 0, scene.grating))
    patch = np.s_[y - 5 : y + 5, x - 5 : x + 5]
    real, segmap = paint(scene)
    if segmap[patch].any():
      continue
    found.append(_step(image[patch], scene) / _step(real[patch], scene))
  return float(np.mean(found))


def texture_kept(images: Images, scenes: Sequence[Scene]) -> float:
  """The correlation of what striped and checkered objects have above their
  mean over 3 x 3 pixels with what they had, from 1 down to 0."""
  found = []
  for image, scene in zip(images, scenes, strict=True):
    real = paint(scene)[0]
    for thing in scene.things:
      if thing.texture not in FINE:
        continue
      window, _ = place(scene.level, thing)
      ours, theirs = (_sharp(x)[window].ravel() for x in (image, real))
      lengths = np.linalg.norm(ours) * np.linalg.norm(theirs)
      found.append(ours @ theirs / lengths if lengths else 0.0)
  return float(np.mean(found))


def _field(scene: Scene, side: int) -> tuple[slice, slice]:
  """Where the number stands: rows and columns."""
  left = 0 if scene.corner % 3 == 0 else side - WIDE
  top = 0 if scene.corner < 3 else side - HIGH
  return slice(top, top + HIGH), slice(left, left + WIDE)


def _step(patch: UInt8[np.ndarray, "10 10 3"], scene: Scene) -> float:
  """The mean of every other line less that of the rest."""
  lines = patch.astype(float).mean(2).mean(0 if scene.upright else 1)
  return float(lines[::2].mean() - lines[1::2].mean())


def _sharp(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
  """An image less its mean over 3 x 3 pixels."""
  wide = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), "edge")
  height, width, _ = image.shape
  parts = [
    wide[i : i + height, j : j + width] for i in range(3) for j in range(3)
  ]
  return image - sum(parts) / 9
