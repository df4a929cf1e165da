"""The one place where image files are opened: formats, limits, orientation."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ldm_jax.errors import ImageError
from ldm_jax.files.regular_files import open_regular

# EPS would start Ghostscript; Pillow's other readers are little tested.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # an 11 KB PNG can hold 90 MP; Pillow only warns
MAX_BYTES = 2**30
ORIENTATION = ExifTags.Base.Orientation

File = str | os.PathLike | io.BytesIO


@contextlib.contextmanager
def open_image(
  file: File, name: str, formats: Sequence[str] = FORMATS
) -> Iterator[Image.Image]:
  """An image whose pixels are not decoded yet, of at most MAX_PIXELS.

  Args:
    file: a path, or the bytes of a file.
    name: of the image in error messages.
    formats: that may be opened, of FORMATS.

  Raises:
    ImageError: it cannot be opened, or the block cannot decode it.
  """
  try:
    with contextlib.ExitStack() as stack:
      if not isinstance(file, io.BytesIO):
        file = stack.enter_context(open_regular(pathlib.Path(file)))
        _check_bytes(os.fstat(file.fileno()).st_size, name)
      image = stack.enter_context(Image.open(file, formats=formats))
      _check_pixels(image.size, name)
      yield image
  except ImageError:
    raise
  # On malformed bytes Pillow's readers raise a dozen exception types, even
  # SyntaxError; in every case the image is bad, and the type decides the kind.
  except Exception as error:
    raise ImageError(name, _kind(error), _detail(error, formats)) from error


def read_png_text(
  path: str | os.PathLike, key: str
) -> tuple[tuple[int, int], str | None]:
  """Width and height of a PNG, and a text chunk of its header, if it has it.

  Raises:
    ImageError: it is not a PNG.
  """
  with open_image(path, os.fspath(path), formats=["PNG"]) as image:
    text = image.info.get(key)
    return image.size, text if isinstance(text, str) else None


def _check_pixels(size: tuple[int, int], name: str) -> None:
  if size[0] * size[1] > MAX_PIXELS:
    limit = MAX_PIXELS // 1_000_000
    detail = f"{size[0]} x {size[1]} pixels; at most {limit} million are read"
    raise ImageError(name, "too_large", detail)


def upright_size(image: Image.Image) -> tuple[int, int]:
  """Height and width of an opened image as `upright` will return it."""
  width, height = image.size
  # Pillow gives the upright size of a TIFF, and turns it when it decodes it.
  if image.format == "TIFF" or orientation(image) < 5:
    return height, width
  return width, height


def orientation(image: Image.Image) -> int:
  """EXIF orientation, 1 to 8; 1 (upright) if it is missing or damaged.

  In a PNG it may follow the pixels, which are decoded to find it. A TIFF has
  none any more once it is decoded, since Pillow has turned it.
  """
  try:
    found = image.getexif().get(ORIENTATION, 1)
  except Exception:  # see open_image
    return 1
  return found if found in range(1, 9) else 1


def upright(image: Image.Image, turn: int) -> np.ndarray:
  """The pixels, transposed as the orientation `turn` asks.

  Pillow rewrites the whole EXIF block of what it transposes, and so refuses a
  damaged one: it gets a copy with the orientation alone.
  """
  if turn == 1:
    return np.asarray(image)
  plain = Image.fromarray(np.asarray(image))
  plain.getexif()[ORIENTATION] = turn
  return np.asarray(ImageOps.exif_transpose(plain))


def _check_bytes(size: int, name: str) -> None:
  if size > MAX_BYTES:
    detail = f"{size} bytes; at most {MAX_BYTES} are read"
    raise ImageError(name, "too_large", detail)


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


def _detail(error: Exception, formats: Sequence[str]) -> str:
  if isinstance(error, UnidentifiedImageError):
    return f"no reader of {', '.join(formats)} recognizes it"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f"{error}"[:200] or type(error).__name__
