"""Pictures of any size to squares of one, with what belongs to their pixels."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from ldm_jax.data.images import resize, resize_map


@dataclasses.dataclass(frozen=True)
class Augment:
  """A square crop, resized with antialiasing, perhaps mirrored.

  Arrays as high and wide as the image (segmentation maps) follow it, by nearest
  neighbour. Boxes stay those of the whole image and are mirrored with it, and
  "crop" tells which part of it is left: x0, y0, x1, y1 in [0, 1]. A crop that
  has `size` already is not resampled, a smaller one is enlarged.

  Attributes:
    size: pixels of the result, both ways.
    crop: "center" takes the whole shorter side; "random" takes shorter side x
      U(scale), anywhere.
    flip: mirror every other image. Set it to False where captions tell left
      from right, or pictures hold text.
    tells: add "sizes", the numbers of SDXL (Podell et al. 2023, section 2.2),
      heights first: the picture's own, the crop's top and left in pixels of the
      result, and the result's; or the picture's aesthetic "score" at the end.
  """

  size: int
  crop: Literal["random", "center"] = "random"
  scale: tuple[float, float] = (1.0, 1.0)
  flip: bool = True
  tells: Literal["target", "score"] | None = None

  def __post_init__(self):
    low, high = self.scale
    if not 0.0 < low <= high <= 1.0:
      raise ValueError(
        f"scale {self.scale} must be two parts of the shorter side, "
        "0 < low <= high <= 1; try (0.8, 1.0)"
      )
    if self.size < 1:
      raise ValueError(
        f"size {self.size} must be a number of pixels, 1 or more"
      )

  def random(
    self, item: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, Any]:
    """As the fields say. Always four draws, so that crops keep their flips."""
    zoom, top, left, flip = rng.random(4)
    if self.crop == "center":
      return self._square(item, None, bool(self.flip and flip < 0.5))
    low, high = self.scale
    place = (low + (high - low) * zoom, top, left)
    return self._square(item, place, bool(self.flip and flip < 0.5))

  def center(self, item: dict[str, Any]) -> dict[str, Any]:
    """The whole shorter side, never mirrored: for validation."""
    return self._square(item, None, False)

  def _square(
    self,
    item: dict[str, Any],
    place: tuple[float, float, float] | None,
    flip: bool,
  ) -> dict[str, Any]:
    if "image" not in item:
      raise ValueError(
        f"nothing to augment: examples have {', '.join(sorted(item))}, but no "
        "image; set augment to None"
      )
    height, width = item["image"].shape[:2]
    box = _center_box(height, width)
    if place is not None:
      box = _random_box(height, width, place)
    cut = {}
    for key, value in item.items():
      if np.shape(value)[:2] == (height, width):
        value = _crop(value, box, self.size, is_image=key == "image")
        value = value[:, ::-1] if flip else value
      cut[key] = value
    if self.tells is not None:
      cut["sizes"] = self._sizes(item, box)
    if "boxes" in item:
      top, left, side = box
      crop = np.float32([left, top, left + side, top + side])
      cut["crop"] = crop / np.float32([width, height, width, height])
      for key in ("boxes", "crop") if flip else ():
        cut[key] = _mirrored(cut[key])
    return cut

  def _sizes(
    self, item: dict[str, Any], box: tuple[int, int, int]
  ) -> Float32[np.ndarray, " k"]:
    """What SDXL is told of a crop."""
    height, width = item["image"].shape[:2]
    top, left, side = box
    scale = self.size / side
    ends = [self.size, self.size]
    if self.tells == "score":
      if "score" not in item:
        raise ValueError(
          "tells='score' needs examples with a score; give a folder's "
          "metadata.jsonl a number `score` for every picture"
        )
      ends = [item["score"]]
    told = [height, width, round(top * scale), round(left * scale), *ends]
    return np.float32(told)


def _center_box(height: int, width: int) -> tuple[int, int, int]:
  side = min(height, width)
  return (height - side) // 2, (width - side) // 2, side


def _random_box(
  height: int, width: int, place: tuple[float, float, float]
) -> tuple[int, int, int]:
  """(top, left, side) from (part of the shorter side, top, left) in [0, 1)."""
  part, top, left = place
  side = max(1, round(part * min(height, width)))
  return int(top * (height - side + 1)), int(left * (width - side + 1)), side


def _mirrored(boxes: Shaped[np.ndarray, "*k n"]) -> np.ndarray:
  """x0, y0, x1, y1, ... seen in a mirror; rows of -1 stay."""
  x0, y0, x1, y1, *rest = np.moveaxis(np.asarray(boxes), -1, 0)
  is_there = x1 >= 0
  left, right = np.where(is_there, 1 - x1, x0), np.where(is_there, 1 - x0, x1)
  return np.stack([left, y0, right, y1, *rest], axis=-1).astype(boxes.dtype)


def _crop(
  values: Shaped[np.ndarray, "..."],
  box: tuple[int, int, int],
  size: int,
  *,
  is_image: bool,
) -> UInt8[np.ndarray, "size size 3"] | Shaped[np.ndarray, "size size ..."]:
  top, left, side = box
  cut = values[top : top + side, left : left + side]
  if side == size:
    return cut
  return resize(cut, size) if is_image else resize_map(cut, size)
