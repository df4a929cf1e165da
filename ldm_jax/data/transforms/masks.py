"""Random inpainting masks."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from ldm_jax.fields.limits import NonNegative

Kind = Literal["box", "strokes", "object"]


@dataclasses.dataclass(frozen=True)
class Masks:
  """A random mask for each image: true where it is to be inpainted.

  "box": one rectangle. "strokes": polylines with round ends, as of a thick
  brush (after Yu et al. 2019, section 3.4). "object": the rectangle of one of
  the example's boxes, enlarged by a margin; of an object of its segmentation
  map if it has no boxes; a random rectangle if it has neither.

  Attributes:
    kinds: one is chosen at random, all equally likely.
    sides: smallest and largest side of a rectangle, as fractions of the
      image's.
    strokes: smallest and largest number of strokes.
    brush: smallest and largest width of a stroke, as fractions of the image's
      shorter side.
    margin: around an object, as a fraction of the image's shorter side.
  """

  kinds: tuple[Kind, ...] = ("box", "strokes", "object")
  sides: tuple[float, float] = (0.25, 0.75)
  strokes: tuple[int, int] = (1, 4)
  brush: tuple[float, float] = (0.05, 0.2)
  margin: NonNegative = 0.05

  output_key = "mask"

  def __post_init__(self):
    if not self.kinds:
      raise ValueError("Masks needs a kind: box, strokes or object")
    for name in ("sides", "brush"):
      low, high = getattr(self, name)
      if not 0 < low <= high <= 1:
        raise ValueError(
          f"Masks.{name}=({low}, {high}) must increase within 0 to 1"
        )
    if not 1 <= self.strokes[0] <= self.strokes[1]:
      raise ValueError(f"Masks.strokes={self.strokes} must increase, from 1 on")

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator
  ) -> Bool[np.ndarray, "h w"]:
    """A mask of the size of the item's image; at least one pixel is true."""
    height, width = item["image"].shape[:2]
    kind = self.kinds[rng.integers(len(self.kinds))]
    if kind == "strokes":
      return self._strokes(height, width, rng)
    if kind == "object":
      box = _object(item, rng)
      if box is not None:
        return self._around(box, height, width)
    return self._box(height, width, rng)

  def _box(self, height, width, rng) -> Bool[np.ndarray, "h w"]:
    sides = rng.uniform(*self.sides, 2) * (height, width)
    down, across = np.maximum(1, np.round(sides)).astype(int)
    top = rng.integers(height - down + 1)
    left = rng.integers(width - across + 1)
    mask = np.zeros((height, width), bool)
    mask[top : top + down, left : left + across] = True
    return mask

  def _strokes(self, height, width, rng) -> Bool[np.ndarray, "h w"]:
    canvas = Image.new("1", (width, height))
    brush, shorter = ImageDraw.Draw(canvas), min(height, width)
    for _ in range(rng.integers(self.strokes[0], self.strokes[1] + 1)):
      thick = max(1, round(rng.uniform(*self.brush) * shorter))
      point = rng.uniform((0, 0), (width, height))
      points = [point]
      angle = rng.uniform(0, 2 * np.pi)
      for _ in range(rng.integers(1, 5)):
        angle += rng.uniform(-np.pi / 2, np.pi / 2)
        length = rng.uniform(0.1, 0.4) * shorter
        point = point + length * np.array([np.cos(angle), np.sin(angle)])
        point = np.clip(point, 0, (width - 1, height - 1))
        points.append(point)
      brush.line([tuple(p) for p in points], fill=1, width=thick)
      for x, y in points:
        r = thick / 2
        brush.ellipse((x - r, y - r, x + r, y + r), fill=1)
    return np.array(canvas)

  def _around(self, box, height, width) -> Bool[np.ndarray, "h w"]:
    margin = self.margin * min(height, width)
    x0, y0, x1, y1 = box * (width, height, width, height)
    mask = np.zeros((height, width), bool)
    top, left = max(0, int(y0 - margin)), max(0, int(x0 - margin))
    bottom, right = int(np.ceil(y1 + margin)), int(np.ceil(x1 + margin))
    mask[top : max(top + 1, bottom), left : max(left + 1, right)] = True
    return mask


def _object(
  item: Mapping[str, Any], rng: np.random.Generator
) -> np.ndarray | None:
  """x0, y0, x1, y1 in [0, 1] of one object, or None."""
  boxes = np.asarray(item.get("boxes", np.zeros((0, 5))))
  boxes = boxes[boxes[:, 4] >= 0]
  if len(boxes):
    return boxes[rng.integers(len(boxes)), :4].clip(0, 1)
  segmap = item.get("segmap")
  classes = [] if segmap is None else np.unique(segmap[segmap > 0])
  if not len(classes):
    return None
  ys, xs = np.nonzero(segmap == classes[rng.integers(len(classes))])
  height, width = segmap.shape
  return np.array(
    [
      xs.min() / width,
      ys.min() / height,
      (xs.max() + 1) / width,
      (ys.max() + 1) / height,
    ]
  )
