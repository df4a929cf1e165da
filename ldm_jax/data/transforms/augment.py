"""Random crop, resize and mirroring, of images and their annotations."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from ldm_jax.data.images import resize, resize_map
from ldm_jax.errors import DataError
from ldm_jax.fields.limits import Count, Fraction, check_limits

Place = tuple[float, float, float]  # fraction of the largest box, top, left
Box = tuple[int, int, int, int]  # top, left, rows, columns
CENTRE: Place = (1.0, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Augment:
  """A square crop, resized with antialiasing, mirrored at random.

  Arrays as high and wide as the image (segmentation maps) are cropped with it
  and resized by nearest neighbour. Boxes stay in coordinates of the whole image
  and are mirrored with it; "crop" is the part of it that is kept: x0, y0, x1,
  y1 in [0, 1]. A crop that has `size` already is not resampled, a smaller one
  is enlarged.

  Attributes:
    size: side of the result in pixels.
    crop: "center" takes the whole shorter side; "random" takes shorter side x
      U(scale), anywhere.
    scale: low and high, fractions of the shorter side.
    flip: mirror with probability 1/2. Set it to False where captions
      distinguish left and right, or images hold text.
    size_conditioning: add "sizes", SDXL's micro-conditioning (Podell et al.
      2023, section 2.2), heights first: of the original image, top and left of
      the crop in pixels of the result, and of the result ("target") or the
      example's aesthetic "score".
  """

  size: Count
  crop: Literal["random", "center"] = "random"
  scale: tuple[Fraction, Fraction] = (1.0, 1.0)
  flip: bool = True
  size_conditioning: Literal["target", "score"] | None = None

  def __post_init__(self):
    check_limits(self)
    low, high = self.scale
    if not 0.0 < low <= high <= 1.0:
      raise ValueError(
        f"scale {self.scale} must be two fractions of the shorter side, "
        "0 < low <= high <= 1; try (0.8, 1.0)"
      )

  def random(
    self,
    item: dict[str, Any],
    rng: np.random.Generator,
    shape: tuple[int, int] | None = None,
  ) -> dict[str, Any]:
    """A random crop; it always draws four random numbers, whatever the fields.

    So the order of crops does not depend on `flip`, nor that of flips on
    `crop`.

    Args:
      shape: height and width of the result in place of a square.

    Raises:
      DataError: the example has no image, or no score where it is needed.
    """
    zoom, top, left, flip = rng.random(4)
    low, high = self.scale
    place = (low + (high - low) * zoom, top, left)
    if self.crop == "center":
      place = CENTRE
    return self._cut(item, place, bool(self.flip and flip < 0.5), shape)

  def center(self, item: dict[str, Any]) -> dict[str, Any]:
    """The largest centred crop, never mirrored: for validation."""
    return self._cut(item, CENTRE, False)

  def _cut(
    self,
    item: dict[str, Any],
    place: Place,
    flip: bool,
    shape: tuple[int, int] | None = None,
  ) -> dict[str, Any]:
    if "image" not in item:
      raise DataError(
        f"nothing to augment: examples have {', '.join(sorted(item))}, but no "
        "image; set augment to None"
      )
    shape = shape or (self.size, self.size)
    height, width = item["image"].shape[:2]
    box = _box(height, width, place, shape)
    cut = {}
    for key, value in item.items():
      if np.shape(value)[:2] == (height, width):
        value = _crop(value, box, shape, is_image=key == "image")
        value = value[:, ::-1] if flip else value
      cut[key] = value
    if self.size_conditioning is not None:
      cut["sizes"] = self._sizes(item, box, shape)
    if "boxes" in item:
      top, left, rows, columns = box
      crop = np.float32([left, top, left + columns, top + rows])
      cut["crop"] = crop / np.float32([width, height, width, height])
      for key in ("boxes", "crop") if flip else ():
        cut[key] = _mirrored(cut[key])
    return cut

  def _sizes(
    self, item: dict[str, Any], box: Box, shape: tuple[int, int]
  ) -> Float32[np.ndarray, " k"]:
    """SDXL's size and crop conditioning; see `size_conditioning`."""
    height, width = item["image"].shape[:2]
    top, left, rows, _ = box
    scale = shape[0] / rows
    ends = [*shape]
    if self.size_conditioning == "score":
      if "score" not in item:
        raise DataError(
          "size_conditioning='score' needs examples with a score; give a "
          "folder's metadata.jsonl a number `score` for every image"
        )
      ends = [item["score"]]
    corner = round(top * scale), round(left * scale)
    return np.float32([height, width, *corner, *ends])


def _box(height: int, width: int, place: Place, shape: tuple[int, int]) -> Box:
  """The crop box of the aspect ratio of `shape`, in pixels of the image."""
  fraction, top, left = place
  largest = min(height, width * shape[0] / shape[1])
  rows = max(1, round(fraction * largest))
  columns = round(fraction * largest * shape[1] / shape[0])
  columns = max(1, min(width, columns))
  across, down = width - columns, height - rows
  if place == CENTRE:
    return down // 2, across // 2, rows, columns
  return int(top * (down + 1)), int(left * (across + 1)), rows, columns


def _mirrored(boxes: Shaped[np.ndarray, "*k n"]) -> np.ndarray:
  """x0, y0, x1, y1, ... mirrored left to right; rows of -1 stay."""
  x0, y0, x1, y1, *rest = np.moveaxis(np.asarray(boxes), -1, 0)
  is_there = x1 >= 0
  left, right = np.where(is_there, 1 - x1, x0), np.where(is_there, 1 - x0, x1)
  return np.stack([left, y0, right, y1, *rest], axis=-1).astype(boxes.dtype)


def _crop(
  values: Shaped[np.ndarray, "..."],
  box: Box,
  shape: tuple[int, int],
  *,
  is_image: bool,
) -> UInt8[np.ndarray, "height width 3"] | Shaped[np.ndarray, "..."]:
  top, left, rows, columns = box
  cut = values[top : top + rows, left : left + columns]
  if (rows, columns) == shape:
    return cut
  return resize(cut, *shape) if is_image else resize_map(cut, *shape)
