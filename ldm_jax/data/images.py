"""Image files to pixels, uint8 [h, w, 3]; errors say why one cannot be read."""

import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ldm_jax.errors import ImageError

# EPS would start Ghostscript; Pillow's other readers are little tested.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset((
  ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
  ".ppm", ".pgm", ".pbm", ".pnm",
))  # fmt: skip
MAX_PIXELS = 64_000_000  # an 11 KB PNG can hold 90 MP; Pillow only warns
WHITE = (255, 255, 255, 255)
ORIENTATION = ExifTags.Base.Orientation


def read_image(path: str | pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """Upright by its EXIF orientation, RGB, transparency over white.

  Only the first page of a multi-page TIFF is read.

  Raises:
    ImageError: the file is missing, damaged, no image, animated, or larger
      than MAX_PIXELS.
  """
  return decode_image(path, str(path))


def decode_image(
  file: str | pathlib.Path | io.BytesIO, name: str
) -> UInt8[np.ndarray, "h w 3"]:
  """`read_image` for a path or the bytes of a file.

  Args:
    name: of the image in error messages.
  """
  try:
    if not isinstance(file, io.BytesIO):
      file = io.BytesIO(pathlib.Path(file).read_bytes())
    with Image.open(file, formats=FORMATS) as image:
      pixels = image.width * image.height
      if pixels > MAX_PIXELS:
        raise ImageError(name, "too_large", _too_large(image.size))
      if image.format != "TIFF" and getattr(image, "is_animated", False):
        raise ImageError(name, "animated", "a still image is needed")
      pixels = _decode_plain_jpeg(image, file)
      if pixels is not None:
        return pixels
      image.load()
      return _upright(_to_rgb(image, name), _orientation(image))
  except ImageError:
    raise
  # On malformed bytes Pillow's readers raise a dozen exception types, even
  # SyntaxError; in every case the image is bad, and the type decides the kind.
  except Exception as error:
    raise ImageError(name, _kind(error), _detail(error)) from error


def _decode_plain_jpeg(
  image: Image.Image, file: io.BytesIO
) -> UInt8[np.ndarray, "h w 3"] | None:
  """An upright RGB JPEG by OpenCV, which copies less; None for others.

  A truncated file is left to Pillow, which reports it.
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
  """Height and width of the upright image, from the file's header alone.

  Raises:
    ImageError: the header cannot be read.
  """
  try:
    with Image.open(file, formats=FORMATS) as image:
      width, height = image.size
      is_transposed = _orientation(image) >= 5
  except Exception as error:  # see decode_image
    raise ImageError(str(file), _kind(error), _detail(error)) from error
  return (width, height) if is_transposed else (height, width)


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


def _orientation(image: Image.Image) -> int:
  """EXIF orientation, 1 to 8; 1 (upright) if it is missing or damaged."""
  try:
    found = image.getexif().get(ORIENTATION, 1)
  except (SyntaxError, ValueError, TypeError, OSError, KeyError):
    return 1
  return found if found in range(1, 9) else 1


def _upright(image: Image.Image, orientation: int) -> np.ndarray:
  """The pixels, transposed as EXIF asks.

  Pillow rewrites the whole EXIF block of what it transposes, and so refuses a
  damaged one: it gets a copy with the orientation alone.
  """
  if orientation == 1:
    return np.asarray(image)
  plain = Image.fromarray(np.asarray(image))
  plain.getexif()[ORIENTATION] = orientation
  return np.asarray(ImageOps.exif_transpose(plain))


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
