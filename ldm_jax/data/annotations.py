"""Annotation files of an image: class maps, masks, depth maps, boxes."""

import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from ldm_jax.data.open_images import open_image, orientation, upright
from ldm_jax.errors import DataError, ImageError
from ldm_jax.files.regular_files import read_regular
from ldm_jax.files.strict_json import parse_json

# File name endings, by the name of the array that is read from the file.
ENDINGS = {
  "segmap": ".map.png",
  "mask": ".mask.png",
  "depth": ".depth.png",
  "boxes": ".boxes.json",
}


MAX_CLASS = 2**24  # rows of boxes are float32


class Member(io.BytesIO):
  """A file inside an archive; `str` gives the name for error messages."""

  def __init__(self, data: bytes, name: str):
    super().__init__(data)
    self._name = name

  def __str__(self) -> str:
    return self._name


File = str | pathlib.Path | Member


def read_plane(path: File, size: tuple[int, int] | None = None) -> np.ndarray:
  """The values of a one-channel image, [h, w].

  Args:
    size: the height and width that it must have.

  Raises:
    DataError: it is not an image, has several channels, or is of another size.
  """
  try:
    with open_image(path, str(path)) as image:
      mode = image.mode
      image.load()
      plane = upright(image, orientation(image))
  except ImageError as error:
    raise DataError(f"{path} is not an image: {error.detail}") from error
  if plane.ndim != 2:
    raise DataError(
      f"{path} has colours ({mode}); expected one channel: grey values or "
      "palette indices"
    )
  if not np.isfinite(plane).all():
    raise DataError(f"{path} holds NaN or infinity; expected finite values")
  if size is not None and plane.shape != size:
    raise DataError(
      f"{path} is {plane.shape[0]} x {plane.shape[1]}, its image "
      f"{size[0]} x {size[1]}; they must be of one size"
    )
  return plane


def read_map(
  path: File, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "h w"]:
  """A segmentation map, classes 0 to 255; raises as `read_plane`."""
  plane = read_plane(path, size)
  if plane.dtype.kind == "f" or plane.min(initial=0) < 0:
    raise DataError(f"{path} must hold classes, whole numbers from 0 to 255")
  if plane.max(initial=0) > 255:
    raise DataError(f"{path} has class {plane.max()}; the largest is 255")
  return plane.astype(np.uint8)


def read_mask(
  path: File, size: tuple[int, int] | None = None
) -> Bool[np.ndarray, "h w"]:
  """True where a pixel is 128 or more; raises as `read_plane`."""
  plane = read_plane(path, size)
  return plane >= (1 if plane.dtype == bool else 128)


def read_depth(
  path: File, size: tuple[int, int] | None = None
) -> Float32[np.ndarray, "h w"]:
  """Inverse depth scaled to [-1, 1] per image; 1 is nearest.

  The convention of MiDaS, with which Stable Diffusion 2's depth model was
  trained. Raises as `read_plane`.
  """
  plane = read_plane(path, size).astype(np.float32)
  low, high = plane.min(), plane.max()
  return 2 * (plane - low) / max(high - low, 1e-6) - 1


def read_boxes(path: File) -> Float[np.ndarray, "k 5"]:
  """x0, y0, x1, y1 in [0, 1] and a class, from a JSON list of objects.

  Such as [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]: left, top, right, bottom.

  Raises:
    DataError: it is no such list.
  """
  try:
    is_member = isinstance(path, Member)
    data = path.getvalue() if is_member else read_regular(path)
    entries = parse_json(data, DataError)
    rows = [_box(entry) for entry in entries]
    boxes = np.asarray(rows, np.float64).reshape(-1, 5)
  except OSError as error:
    raise DataError(f"{path}: {error}") from error
  except (ValueError, TypeError) as error:
    raise DataError(
      f"{path} must hold a list such as "
      '[{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]'
    ) from error
  low, high = boxes[:, :2], boxes[:, 2:4]
  is_inside = (low >= 0).all() and (high <= 1).all() and (low < high).all()
  if not is_inside or (boxes[:, 4] < 0).any():
    raise DataError(
      f"{path}: every box is left, top, right, bottom, increasing within 0 to "
      "1, and every class 0 or more"
    )
  return boxes


def _box(entry: Any) -> list[Any]:
  """Sides and class of an object; raises ValueError for another value."""
  match entry:
    case {"box": [_, _, _, _] as sides, "class": number}:
      row = [*sides, number]
      is_number = all(type(value) in (int, float) for value in row)
      if is_number and number < MAX_CLASS and number == int(number):
        return [float(value) for value in row]
  raise ValueError(f"{entry!r}")


def pad_boxes(
  boxes: Float[np.ndarray, "k 5"], objects: int
) -> Float32[np.ndarray, "objects 5"]:
  """The first `objects` boxes, padded with rows of -1 to that number."""
  rows = np.full((objects, 5), -1, np.float32)
  first = boxes[:objects]
  rows[: len(first)] = first
  return rows


READERS = {"segmap": read_map, "mask": read_mask, "depth": read_depth}


def read_annotation(
  key: str, path: File, size: tuple[int, int], objects: int
) -> np.ndarray:
  """The array `key` of ENDINGS, for an image of this height and width.

  Args:
    objects: rows of "boxes"; see `pad_boxes`.

  Raises:
    ImageError: see `read_plane` and `read_boxes`; the example is bad.
  """
  try:
    if key == "boxes":
      return pad_boxes(read_boxes(path), objects)
    return READERS[key](path, size)
  except DataError as error:
    detail = str(error).removeprefix(str(path)).lstrip(": ")
    raise ImageError(str(path), "mislabelled", detail) from error
