"""Layouts as tokens: a sequence of ids for boxes and their classes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

from ldm_jax.errors import DataError
from ldm_jax.fields.limits import Count


@dataclasses.dataclass(frozen=True)
class LayoutTokens:
  """Reads "boxes" and writes "layout": three ids per object, then two.

  As LDM's layout models have it (Rombach et al. 2022, section 4.3.1; the
  tokens are taming-transformers'): an object is its class, its top left corner
  and its bottom right one. A corner is round(y (S - 1)) S + round(x (S - 1)),
  x and y in [0, 1] of the whole image and S = floor(sqrt(vocabulary)); 8,192
  ids give S = 90. Objects come in random order; id vocabulary - 1 is padding.
  The last two ids are the corners of the crop. Classes and corners share one
  vocabulary.

  Attributes:
    vocabulary: number of ids.
    objects: the largest number of objects; if there are more, a random subset
      is taken.
    has_crop: whether the two ids of the crop are appended.
  """

  vocabulary: Count = 8192
  objects: Count = 30
  has_crop: bool = True

  output_key = "layout"

  def __post_init__(self):
    if self.side < 2 or self.objects < 1:
      raise ValueError(
        f"a vocabulary of {self.vocabulary} and {self.objects} objects; "
        "expected 4 ids, for a grid of 2, and 1 object at least"
      )

  @property
  def side(self) -> int:
    """S, the side of the grid of corners."""
    return math.isqrt(self.vocabulary)

  @property
  def length(self) -> int:
    """Number of ids of a layout."""
    return 3 * self.objects + 2 * self.has_crop

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator
  ) -> Int32[np.ndarray, " l"]:
    """The ids of an example with "boxes" [k, 5] and perhaps "crop" [4]."""
    boxes = np.asarray(item["boxes"], np.float64)
    boxes = boxes[boxes[:, 4] >= 0]
    order = rng.permutation(len(boxes))[: self.objects]
    return self.encode(boxes[order], item.get("crop"))

  def encode(
    self,
    boxes: Float[np.ndarray, "k 5"],
    crop: Float[np.ndarray, "4"] | None = None,
  ) -> Int32[np.ndarray, " l"]:
    """The ids of boxes in this order: x0, y0, x1, y1 in [0, 1], class.

    Raises:
      DataError: there are too many, or a class has no id.
    """
    if len(boxes) > self.objects:
      raise DataError(f"{len(boxes)} boxes; the limit is {self.objects}")
    padding = self.vocabulary - 1
    if len(boxes) and not 0 <= boxes[:, 4].max() < padding:
      raise DataError(
        f"class {boxes[:, 4].max():g} of a box; the vocabulary has ids for "
        f"0 to {padding - 1}"
      )
    ids = np.full(self.length, padding, np.int32)
    triples = np.concatenate([boxes[:, 4:], self.corners(boxes[:, :4])], axis=1)
    ids[: triples.size] = triples.astype(np.int32).reshape(-1)
    if self.has_crop:
      whole = np.array([0.0, 0.0, 1.0, 1.0]) if crop is None else crop
      ids[-2:] = self.corners(np.asarray(whole)[None])[0]
    return ids

  def corners(self, boxes: Float[np.ndarray, "k 4"]) -> Int[np.ndarray, "k 2"]:
    """Ids of the top left and the bottom right corner."""
    points = np.round(boxes.clip(0, 1) * (self.side - 1)).astype(np.int64)
    x, y = points[:, ::2], points[:, 1::2]
    return y * self.side + x

  def decode(self, ids: Int[np.ndarray, " l"]) -> Float[np.ndarray, "k 5"]:
    """The boxes of a sequence, rounded to the grid."""
    triples = np.asarray(ids)[: 3 * self.objects].reshape(-1, 3)
    triples = triples[triples[:, 0] != self.vocabulary - 1]
    y, x = np.divmod(triples[:, 1:], self.side)
    corners = np.stack([x, y], axis=-1).reshape(-1, 4) / (self.side - 1)
    return np.concatenate([corners, triples[:, :1]], axis=1)
