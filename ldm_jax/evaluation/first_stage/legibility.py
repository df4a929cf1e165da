"""Rendered text, and which of its characters stay distinguishable.

No text recognition: a character is read if its cell is more similar to its
own template than to that of any other.
"""

import dataclasses
import functools
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Images = UInt8[np.ndarray, "_ _ _ 3"]

CHARACTERS = string.ascii_letters + string.digits
SIZES = (8, 12, 16, 24)  # of the font, in pixels
SEED = 0
_TIE = 1e-6  # two characters of a small font may look the same


@functools.cache
def glyph_templates(size: int) -> UInt8[np.ndarray, "k h w"]:
  """A cell of every character, black on white, in Pillow's own font."""
  font = ImageFont.load_default(size)
  boxes = [font.getbbox(character) for character in CHARACTERS]
  width = max(box[2] - box[0] for box in boxes) + 2
  top = min(box[1] for box in boxes) - 1
  height = max(box[3] for box in boxes) + 1 - top
  cells = []
  for character, box in zip(CHARACTERS, boxes, strict=True):
    cell = Image.new("L", (round(width), round(height)), 255)
    left = (width - (box[2] - box[0])) // 2 - box[0]
    ImageDraw.Draw(cell).text((left, -top), character, 0, font)
    cells.append(np.asarray(cell))
  return np.stack(cells)


@dataclasses.dataclass(frozen=True)
class TextPages:
  """Pages of characters of one size, each at least once, in random order.

  Attributes:
    size: of the font, in pixels.
    images: the pages.
    indices: of the characters, in rows from the top left; of all pages.
  """

  size: int
  images: Images
  indices: Int[np.ndarray, "n rows columns"]

  @classmethod
  def of(cls, size: int, side: int) -> "TextPages":
    """Pages of `side` pixels, as many as hold every character."""
    templates = glyph_templates(size)
    count, height, width = templates.shape
    rows, columns = side // height, side // width
    pages = -(-count // (rows * columns))
    rng = np.random.default_rng(SEED)
    cells = np.resize(rng.permutation(count), (pages, rows, columns))
    images = np.full((pages, side, side, 3), 255, np.uint8)
    text = templates[cells].transpose(0, 1, 3, 2, 4)
    text = text.reshape(pages, rows * height, columns * width)
    images[:, : rows * height, : columns * width] = text[..., None]
    return cls(size, images, cells)

  def fraction_read(self, reconstructions: Images) -> float:
    """The fraction of characters that are nearest to their own template.

    Nearest by the normalised correlation of grey levels, over all characters;
    a cell without contrast is not read. It is 1 for the pages themselves.
    """
    templates = glyph_templates(self.size)
    _, height, width = templates.shape
    pages, rows, columns = self.indices.shape
    grey = reconstructions.astype(np.float64).mean(-1)
    grey = grey[:, : rows * height, : columns * width]
    cells = grey.reshape(pages, rows, height, columns, width)
    cells = cells.transpose(0, 1, 3, 2, 4).reshape(-1, height * width)
    scores = _unit(cells) @ _unit(templates.reshape(len(templates), -1)).T
    own = scores[np.arange(len(scores)), self.indices.reshape(-1)]
    is_read = (own >= scores.max(1) - _TIE) & (own > _TIE)
    return float(is_read.mean())


def _unit(rows: np.ndarray) -> Float[np.ndarray, "n d"]:
  """Rows without their mean, of length 1; constant rows are 0."""
  rows = np.asarray(rows, np.float64)
  rows = rows - rows.mean(1, keepdims=True)
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  return np.where(lengths > 1e-6, rows / np.maximum(lengths, 1e-6), 0)


def overview(
  pages: Sequence[TextPages], side: int
) -> UInt8[np.ndarray, "side side 3"]:
  """The top left of the first page of every size, one below the other."""
  height = side // len(pages)
  heights = [height] * (len(pages) - 1) + [side - height * (len(pages) - 1)]
  return np.concatenate(
    [
      each.images[0, :rows, :side]
      for each, rows in zip(pages, heights, strict=True)
    ]
  )
