"""Images, maps and arrays of a request, from paths or from memory."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ldm_jax.data.annotations import Member
from ldm_jax.data.images import decode_image, read_image
from ldm_jax.errors import ConfigError, ImageError
from ldm_jax.files.numpy_files import read_npy
from ldm_jax.files.regular_files import open_regular, read_regular

MAX_PROMPTS = 100_000  # of one file


def is_path(value: Any) -> bool:
  """Whether a field names a file."""
  return isinstance(value, str | os.PathLike)


def read_rgb(value: Any, field: str) -> UInt8[np.ndarray, "h w 3"]:
  """An image-like field as pixels, upright, over white where transparent.

  Raises:
    ConfigError: it is missing, damaged, or no image; names the field.
  """
  try:
    if is_path(value):
      return read_image(os.fspath(value))
    return decode_image(io.BytesIO(_encoded(value, field)), "of memory:")
  except ImageError as error:
    raise ConfigError(f"{field} {error}") from error


def plane_file(value: Any, field: str) -> str | Member:
  """A map of one channel, as the readers of data/annotations.py take it."""
  return (
    os.fspath(value)
    if is_path(value)
    else Member(_encoded(value, field), field)
  )


def json_file(value: Any, field: str) -> str | Member:
  """A list as a JSON file, as the readers of data/annotations.py take it."""
  if is_path(value):
    return os.fspath(value)
  return Member(json.dumps(list(value)).encode(), field)


def read_floats(value: Any, field: str, axes: int, shape: str) -> np.ndarray:
  """An array field, or the array of an .npy file; no code in it is run.

  Args:
    axes: that it must have.
    shape: what errors call them.

  Raises:
    ConfigError: it is missing, damaged, or not of finite numbers.
  """
  name = f"{field} {os.fspath(value)!r}" if is_path(value) else field
  array = value
  if is_path(value):
    with _field_errors(field):
      array = read_npy(value, ConfigError)
  is_floats = isinstance(array, np.ndarray) and array.dtype.kind == "f"
  if not is_floats or array.ndim != axes or not np.isfinite(array).all():
    raise ConfigError(f"{name} must hold finite floats of shape {shape}")
  return array


def read_array(value: Any, field: str) -> np.ndarray:
  """An array of numbers, or that of an .npy file; no code in it is run.

  Raises:
    ConfigError: it is missing, damaged, or not of finite numbers.
  """
  array = value
  if is_path(value):
    with _field_errors(field):
      array = read_npy(value, ConfigError)
  array = np.asarray(array)
  if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
    raise ConfigError(f"{field} must be an array of finite numbers")
  return array


@contextlib.contextmanager
def _field_errors(field: str) -> Iterator[None]:
  """A ConfigError of the block names the field."""
  try:
    yield
  except ConfigError as error:
    raise ConfigError(f"{field} {error}") from error


def read_prompts(file: str | os.PathLike | TextIO) -> list[str]:
  """Prompts of a text file, one a line, without empty ones.

  Raises:
    ConfigError: it cannot be read, or holds none or too many.
  """
  name = f"prompts_file {os.fspath(file)!r}" if is_path(file) else "stdin"
  try:
    if is_path(file):
      text = read_regular(file).decode("utf-8-sig")
    else:
      text = file.read()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{name}: {error}") from error
  prompts = [line.strip() for line in text.splitlines() if line.strip()]
  if not prompts:
    raise ConfigError(f"{name} holds no prompt")
  if len(prompts) > MAX_PROMPTS:
    raise ConfigError(
      f"{name} holds {len(prompts)} prompts; at most {MAX_PROMPTS} are taken "
      "at a time: split it"
    )
  return prompts


def sha256(value: Any) -> str:
  """Of a file's bytes, or of an array's or image's values."""
  digest = hashlib.sha256()
  if is_path(value):
    with open_regular(value) as file:
      for block in iter(lambda: file.read(2**20), b""):
        digest.update(block)
  elif isinstance(value, np.ndarray | Image.Image):
    array = np.asarray(value)
    digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
  else:
    digest.update(json.dumps(list(value)).encode())
  return digest.hexdigest()


def _encoded(value: Any, field: str) -> bytes:
  """An image in memory as a file, which then is read as any other."""
  if isinstance(value, np.ndarray):
    value = _from_array(value, field)
  if not isinstance(value, Image.Image):
    raise ConfigError(
      f"{field} must be a path, a PIL image or an array, got "
      f"{type(value).__name__}"
    )
  value = ImageOps.exif_transpose(value)
  if value.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
    value = value.convert("RGB")
  file = io.BytesIO()
  if value.mode == "F":  # depth; PNG has no floats
    value.save(file, "TIFF")
  else:
    value.save(file, "PNG", compress_level=0)
  return file.getvalue()


def _from_array(array: np.ndarray, field: str) -> Image.Image:
  if array.dtype == bool:
    array = np.where(array, np.uint8(255), np.uint8(0))
  if array.dtype.kind == "f" and array.ndim == 2:
    return Image.fromarray(array.astype(np.float32))
  is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
  if array.dtype != np.uint8 or not is_image:
    raise ConfigError(
      f"{field} of {array.dtype} {array.shape}; expected uint8 [h w] or [h w 3]"
    )
  return Image.fromarray(array)
