"""The images that every first stage is tested on besides the given ones."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.evaluation.first_stage import legibility, patterns
from ldm_jax.evaluation.first_stage.legibility import SIZES, TextPages

Image = UInt8[np.ndarray, "_ _ 3"]
Images = UInt8[np.ndarray, "_ _ _ 3"]

_GLYPHS = 64  # pixels of an image of level 1


def glyph_mosaics(count: int, side: int) -> Images:
  """Images of the built-in data set's level 1, next to each other.

  Those of one image are validation examples that no other has.
  """
  across = -(-side // _GLYPHS)
  source = Glyphs(level=1, split="validation", size=count * across**2)
  found = np.stack([source[i]["image"] for i in range(len(source))])
  tiles = found.reshape(count, across, across, _GLYPHS, _GLYPHS, 3)
  tiles = tiles.transpose(0, 1, 3, 2, 4, 5)
  whole = tiles.reshape(count, across * _GLYPHS, across * _GLYPHS, 3)
  return np.ascontiguousarray(whole[:, :side, :side])


def chart_side(size: int, strides: Sequence[int]) -> int:
  """The least side of `size` or more that tiles and all strides divide."""
  unit = math.lcm(patterns.TILE, *strides)
  return -(-size // unit) * unit


@dataclasses.dataclass(frozen=True)
class Charts:
  """Text, patterns and glyphs in images of one size.

  Attributes:
    text: pages of every size of font.
    patterns: see `pattern_charts`.
    glyphs: one mosaic.
  """

  text: tuple[TextPages, ...]
  patterns: Images
  glyphs: Images

  @classmethod
  def of(cls, side: int) -> "Charts":
    """Charts of `side` pixels, a multiple of 64."""
    return cls(
      tuple(TextPages.of(size, side) for size in SIZES),
      patterns.pattern_charts(side),
      glyph_mosaics(1, side),
    )

  def through(self, reconstruct: Callable[[Images], Images]) -> "Charts":
    """The same charts as a first stage reconstructs them, all at once."""
    parts = [page.images for page in self.text]
    parts += [self.patterns, self.glyphs]
    ends = np.cumsum([len(part) for part in parts])[:-1]
    *text, tiles, glyphs = np.split(reconstruct(np.concatenate(parts)), ends)
    pages = tuple(
      dataclasses.replace(page, images=images)
      for page, images in zip(self.text, text, strict=True)
    )
    return Charts(pages, tiles, glyphs)

  def overviews(self, side: int) -> dict[str, Image]:
    """An image of at most `side` pixels for each chart, to look at."""
    side = min(side, self.glyphs.shape[1])
    return {
      "glyphs": self.glyphs[0, :side, :side],
      "text": legibility.overview(self.text, side),
      "patterns": patterns.overview(self.patterns)[:side, :side],
    }
