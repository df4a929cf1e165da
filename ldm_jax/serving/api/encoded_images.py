"""Images in JSON: base64, read and written."""

import base64
import binascii
import io

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from ldm_jax.data.open_images import open_image, orientation, upright
from ldm_jax.errors import ConfigError, ImageError
from ldm_jax.runtime.image_files import save_png


def read_base64(text: str, field: str) -> bytes:
  """The bytes of base64 text, with or without a data URL's beginning.

  Raises:
    ConfigError: it is no base64.
  """
  _, comma, rest = text.partition(",")
  encoded = rest if comma and text.startswith("data:") else text
  try:
    return base64.b64decode(encoded, validate=True)
  except (binascii.Error, ValueError) as error:
    raise ConfigError(f"{field} is not base64: {error}") from error


def read_pixels(data: bytes, field: str) -> UInt8[np.ndarray, "h w 4"]:
  """The pixels of an image file, upright: red, green, blue and opacity.

  Raises:
    ConfigError: it is damaged or no image; names the field.
  """
  try:
    with open_image(io.BytesIO(data), field) as image:
      return upright(image.convert("RGBA"), orientation(image))
  except ImageError as error:
    raise ConfigError(str(error)) from error


def over_white(
  pixels: UInt8[np.ndarray, "h w 4"],
) -> UInt8[np.ndarray, "h w 3"]:
  """Red, green and blue of an image over a white background."""
  opacity = pixels[..., 3:].astype(np.float32) / 255
  colours = pixels[..., :3] * opacity + 255 * (1 - opacity)
  return colours.round().astype(np.uint8)


def transparent(pixels: UInt8[np.ndarray, "h w 4"]) -> Bool[np.ndarray, "h w"]:
  """Where less than half of an image is opaque."""
  return pixels[..., 3] < 128


def png_bytes(
  image: UInt8[np.ndarray, "h w 3"], text: dict[str, str] | None = None
) -> bytes:
  """A PNG with text chunks."""
  file = io.BytesIO()
  save_png(file, image, text)
  return file.getvalue()


def encoded_bytes(
  image: UInt8[np.ndarray, "h w 3"],
  text: dict[str, str],
  kind: str,
  quality: int,
) -> bytes:
  """An image file: "png" with its text chunks, "jpeg" or "webp".

  Args:
    quality: 0 to 100, of the last two.
  """
  if kind == "png":
    return png_bytes(image, text)
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind.upper(), quality=quality)
  return file.getvalue()


def to_base64(data: bytes) -> str:
  """Text of bytes."""
  return base64.b64encode(data).decode("ascii")
