"""Any picture file to pixels, uint8 [h, w, 3], or to a reason why not."""

import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from ldm_jax.errors import ImageError

# EPS would start Ghostscript; the rest of Pillow's readers are little tested.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset((
  ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
  ".ppm", ".pgm", ".pbm", ".pnm",
))  # fmt: skip
MAX_PIXELS = 64_000_000  # an 11 KB PNG can hold 90 MP; Pillow only warns
WHITE = (255, 255, 255, 255)

# The EXIF 2.32 table of tag 0x0112: what turns the stored picture upright.
ORIENTATION = 0x0112
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """Upright, in RGB, over white where it is transparent; a TIFF's first page.

  Raises ImageError if the file is missing, damaged, no picture, animated, or
  larger than MAX_PIXELS.
  """
  return decode_image(path, str(path))


def decode_image(
  file: str | pathlib.Path | io.BytesIO, name: str
) -> UInt8[np.ndarray, "h w 3"]:
  """`read_image` for an open file, too; `name` is what errors call it."""
  try:
    if not isinstance(file, io.BytesIO):
      file = io.BytesIO(pathlib.Path(file).read_bytes())
    with Image.open(file, formats=FORMATS) as image:
      pixels = image.width * image.height
      if pixels > MAX_PIXELS:
        raise ImageError(name, "too_large", _too_large(image.size))
      if image.format != "TIFF" and getattr(image, "is_animated", False):
        raise ImageError(name, "animated", "a picture that stands is needed")
      swift = _swiftly(image, file)
      if swift is not None:
        return swift
      image.load()
      return np.asarray(_upright(image, _to_rgb(image, name)))
  except ImageError:
    raise
  # On hostile bytes Pillow's readers raise a dozen types, SyntaxError among
  # them; whatever it is, the picture is bad and the type tells the kind.
  except Exception as error:
    raise ImageError(name, _kind(error), _detail(error)) from error


def _swiftly(
  image: Image.Image, file: io.BytesIO
) -> UInt8[np.ndarray, "h w 3"] | None:
  """A plain upright JPEG by OpenCV, which copies it less often.

  What ends early is left to Pillow, which says so.
  """
  data = file.getbuffer()
  is_plain = image.format == "JPEG" and image.mode == "RGB"
  is_whole = bytes(data[-2:]) == b"\xff\xd9"
  if not (is_plain and is_whole and _orientation(image) == 1):
    return None
  cv2 = _cv2()
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _cv2() -> Any:
  """OpenCV, on the thread that calls it: examples are read by many."""
  import cv2

  if cv2.getNumThreads() > 1:
    cv2.setNumThreads(1)
  return cv2


def rgb(values: Shaped[np.ndarray, "..."], name: str) -> np.ndarray:
  """An array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] as uint8 [h, w, 3].

  Four channels are laid over white. Raises ImageError for any other array.
  """
  if values.ndim == 3 and values.shape[-1] == 1:
    values = values[..., 0]
  fits = values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in (3, 4))
  if values.dtype != np.uint8 or not fits:
    got = f"{values.dtype} {list(values.shape)}; needs uint8 [h, w, 1, 3 or 4]"
    raise ImageError(name, "unsupported", f"an array of {got}")
  return np.asarray(_to_rgb(Image.fromarray(values), name))


def image_size(file: str | pathlib.Path | io.BytesIO) -> tuple[int, int]:
  """Height and width of a picture, upright, by its header alone.

  Raises ImageError as `read_image` does.
  """
  try:
    with Image.open(file, formats=FORMATS) as image:
      width, height = image.size
      is_turned = _orientation(image) >= 5
  except Exception as error:  # see decode_image
    raise ImageError(str(file), _kind(error), _detail(error)) from error
  return (width, height) if is_turned else (height, width)


def header_size(file: str | pathlib.Path | io.BytesIO) -> tuple[int, int]:
  """`image_size`; 1 x 1 of a bad picture, which is told of when it is read."""
  try:
    return image_size(file)
  except ImageError:
    return 1, 1


def resize(
  image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
  """The mean of what a pixel covers, or bicubic where an image grows.

  One that has the size is returned as it is.
  """
  if image.shape[:2] == (height, width):
    return image
  cv2 = _cv2()
  is_smaller = height <= image.shape[0] and width <= image.shape[1]
  how = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=how)


def resize_map(
  values: Shaped[np.ndarray, "h w ..."], height: int, width: int
) -> np.ndarray:
  """By nearest neighbour: class numbers must not be averaged."""
  rows, columns = values.shape[:2]
  down = ((np.arange(height) + 0.5) / height * rows).astype(int)
  across = ((np.arange(width) + 0.5) / width * columns).astype(int)
  return values[down[:, None], across[None, :]]


def shrink(
  image: UInt8[np.ndarray, "h w 3"], side: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """The shorter side `side`, as `resize` does it; a smaller image as it is."""
  return resize(image, *_shrunk(image.shape, side))


def shrink_map(values: Shaped[np.ndarray, "h w ..."], side: int) -> np.ndarray:
  """The same for what belongs to pixels, by nearest neighbour."""
  return resize_map(values, *_shrunk(values.shape, side))


def _shrunk(shape: tuple[int, ...], side: int) -> tuple[int, int]:
  height, width = shape[:2]
  part = min(1.0, side / min(height, width))
  return round(height * part), round(width * part)


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
  paper = Image.new("RGBA", image.size, WHITE)
  return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def _eight_bits(values: np.ndarray, name: str) -> UInt8[np.ndarray, "h w"]:
  """round(x / 257): 65535 becomes 255. Pillow's own conversion saturates."""
  low, high = int(values.min()), int(values.max())
  if low < 0 or high > 65535:
    detail = f"whole numbers from {low} to {high} exceed 16 bits"
    raise ImageError(name, "unsupported", detail)
  return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
  """What EXIF says, 1 being upright; nonsense is upright."""
  try:
    found = image.getexif().get(ORIENTATION, 1)
  except (SyntaxError, ValueError, TypeError, OSError, KeyError):
    return 1
  return found if found in UPRIGHT else 1


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
  """`pixels` turned as the loaded image's EXIF asks."""
  turn = UPRIGHT.get(_orientation(image))
  return pixels if turn is None else pixels.transpose(turn)


def _kind(error: Exception) -> str:
  if isinstance(error, UnidentifiedImageError):
    return "not_an_image"
  bombs = Image.DecompressionBombError, Image.DecompressionBombWarning
  if isinstance(error, bombs):
    return "too_large"
  if "truncated" in str(error).lower() or isinstance(error, EOFError):
    return "truncated"
  if isinstance(error, OSError) and error.errno is not None:
    return "unreadable"
  return "corrupt"


def _detail(error: Exception) -> str:
  if isinstance(error, UnidentifiedImageError):
    return f"no reader of {', '.join(FORMATS)} knows it"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f"{error}"[:200] or type(error).__name__


def _too_large(size: tuple[int, int]) -> str:
  limit = MAX_PIXELS // 1_000_000
  return f"{size[0]} x {size[1]} pixels; at most {limit} million are read"
