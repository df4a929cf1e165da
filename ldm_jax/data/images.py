"""Image files to pixels, uint8 [h, w, 3]; errors say why one cannot be read."""

import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from ldm_jax.data.open_images import (
  open_image,
  orientation,
  upright,
  upright_size,
)
from ldm_jax.errors import ImageError

EXTENSIONS = frozenset((
  ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
  ".ppm", ".pgm", ".pbm", ".pnm",
))  # fmt: skip
STACKED = ("TIFF", "MPO")  # formats of several images, which are no animation
WHITE = (255, 255, 255, 255)


def read_image(path: str | pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """Upright by its EXIF orientation, RGB, transparency over white.

  Only the first page of a multi-page TIFF is read.

  Raises:
    ImageError: the file is missing, damaged, no image, animated, or larger
      than MAX_PIXELS of open_images.py.
  """
  return decode_image(path, str(path))


def decode_image(
  file: str | pathlib.Path | io.BytesIO, name: str
) -> UInt8[np.ndarray, "h w 3"]:
  """`read_image` for a path or the bytes of a file.

  Args:
    name: of the image in error messages.
  """
  with open_image(file, name) as image:
    is_animated = getattr(image, "is_animated", False)
    if is_animated and image.format not in STACKED:
      raise ImageError(name, "animated", "a still image is needed")
    pixels = _decode_plain_jpeg(image)
    if pixels is not None:
      return pixels
    image.load()
    return upright(_to_rgb(image, name), orientation(image))


def _decode_plain_jpeg(
  image: Image.Image,
) -> UInt8[np.ndarray, "h w 3"] | None:
  """An upright RGB JPEG by OpenCV, which copies less; None for others.

  A truncated file is left to Pillow, which reports it.
  """
  is_plain = image.format == "JPEG" and image.mode == "RGB"
  if not (is_plain and orientation(image) == 1):
    return None
  image.fp.seek(0)
  data = image.fp.read()
  if data[-2:] != b"\xff\xd9":
    return None
  cv2 = _cv2()
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _cv2() -> Any:
  """OpenCV without threads of its own: many threads read examples already."""
  import cv2

  if cv2.getNumThreads() > 1:
    cv2.setNumThreads(1)
  return cv2


def rgb(values: Shaped[np.ndarray, "..."], name: str) -> np.ndarray:
  """A uint8 array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] as [h, w, 3].

  Four channels are RGBA, composited over white. Raises ImageError for any
  other array.
  """
  if values.ndim == 3 and values.shape[-1] == 1:
    values = values[..., 0]
  fits = values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in (3, 4))
  if values.dtype != np.uint8 or not fits:
    got = f"{values.dtype} {list(values.shape)}; needs uint8 [h, w, 1, 3 or 4]"
    raise ImageError(name, "unsupported", f"an array of {got}")
  return np.asarray(_to_rgb(Image.fromarray(values), name))


def image_size(file: str | pathlib.Path | io.BytesIO) -> tuple[int, int]:
  """Height and width of what `read_image` returns, mostly from the header.

  Raises:
    ImageError: the header cannot be read, or names more than MAX_PIXELS.
  """
  with open_image(file, str(file)) as image:
    return upright_size(image)


def header_size(file: str | pathlib.Path | io.BytesIO) -> tuple[int, int]:
  """`image_size`; 1 x 1 of a bad image, which is reported when it is read."""
  try:
    return image_size(file)
  except ImageError:
    return 1, 1


def resize(
  image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
  """Area averaging when both sides shrink or stay, bicubic otherwise.

  An image that has the size already is returned as it is.
  """
  if image.shape[:2] == (height, width):
    return image
  cv2 = _cv2()
  is_smaller = height <= image.shape[0] and width <= image.shape[1]
  method = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=method)


def resize_map(
  values: Shaped[np.ndarray, "h w ..."], height: int, width: int
) -> np.ndarray:
  """Nearest neighbour, for class maps, which must not be averaged."""
  rows, columns = values.shape[:2]
  down = ((np.arange(height) + 0.5) / height * rows).astype(int)
  across = ((np.arange(width) + 0.5) / width * columns).astype(int)
  return values[down[:, None], across[None, :]]


def shrink(
  image: UInt8[np.ndarray, "h w 3"], side: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resizes the shorter side to `side`; a smaller image is left as it is."""
  return resize(image, *_shrunk(image.shape, side))


def shrink_map(values: Shaped[np.ndarray, "h w ..."], side: int) -> np.ndarray:
  """`shrink` for maps of the pixels, by nearest neighbour."""
  return resize_map(values, *_shrunk(values.shape, side))


def _shrunk(shape: tuple[int, ...], side: int) -> tuple[int, int]:
  height, width = shape[:2]
  factor = min(1.0, side / min(height, width))
  return round(height * factor), round(width * factor)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
  if image.mode == "F":
    finite = np.isfinite(np.asarray(image)).all()
    detail = "floating-point pixels have no agreed range; save 8 or 16 bits"
    raise ImageError(name, "unsupported" if finite else "non_finite", detail)
  if image.mode.startswith("I"):  # I;16, I;16B, and I from a 16-bit PGM
    return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
  if not image.has_transparency_data:
    return image.convert("RGB")
  image = image.convert("LA" if image.mode == "La" else image.mode)
  background = Image.new("RGBA", image.size, WHITE)
  return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def _eight_bits(values: np.ndarray, name: str) -> UInt8[np.ndarray, "h w"]:
  """round(x / 257): 65535 becomes 255. Pillow's own conversion saturates."""
  low, high = int(values.min()), int(values.max())
  if low < 0 or high > 65535:
    detail = f"whole numbers from {low} to {high} exceed 16 bits"
    raise ImageError(name, "unsupported", detail)
  return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
