"""Images and masks resized and extended; NumPy and Pillow only."""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image


def fit_image(
  image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
  """Resizes by Pillow's Lanczos; one that has the size is returned as is."""
  if image.shape[:2] == (height, width):
    return image
  return np.asarray(
    Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
  )


def fit_mask(
  image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> Bool[np.ndarray, "height width"]:
  """True where the image is lighter than mid-grey (128)."""
  grey = Image.fromarray(image).convert("L")
  if grey.size != (width, height):
    grey = grey.resize((width, height), Image.Resampling.NEAREST)
  return np.asarray(grey) >= 128


def extend_canvas(
  image: UInt8[np.ndarray, "h w 3"],
  left: int,
  top: int,
  right: int,
  bottom: int,
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
  """Pads the image for outpainting; also a mask that is true on the padding.

  Padding repeats the border pixels, a better start than grey. Sides in pixels.
  """
  sides = ((top, bottom), (left, right))
  mask = np.pad(np.zeros(image.shape[:2], bool), sides, constant_values=True)
  return np.pad(image, (*sides, (0, 0)), mode="edge"), mask
