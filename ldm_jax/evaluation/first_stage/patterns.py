"""Small regular patterns, and how much of them reconstructions keep."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8

Images = UInt8[np.ndarray, "_ _ _ 3"]
Kind = Literal["vertical", "horizontal", "checkers", "dots"]

TILE, MARGIN = 64, 8  # pixels; the margin is not measured
PERIODS = (2, 3, 4, 6, 8, 12, 16)  # pixels; all divide TILE - 2 MARGIN = 48
KINDS: tuple[Kind, ...] = ("vertical", "horizontal", "checkers", "dots")
GREY = 128


@dataclasses.dataclass(frozen=True)
class Pattern:
  """Black and white in a period of so many pixels along each axis.

  Attributes:
    kind: lines that are "vertical" or "horizontal", "checkers" or "dots".
  """

  kind: Kind
  period: int

  def tile(self) -> UInt8[np.ndarray, "t t"]:
    """The pattern in grey levels."""
    y, x = np.mgrid[:TILE, :TILE] % self.period
    half = self.period // 2
    dot = max(1, self.period // 3)
    is_white = {
      "vertical": x < half,
      "horizontal": y < half,
      "checkers": (x < half) ^ (y < half),
      "dots": (x < dot) & (y < dot),
    }[self.kind]
    return np.where(is_white, 255, 0).astype(np.uint8)

  def component(self, tile: Shaped[np.ndarray, "t t"]) -> complex:
    """The Fourier coefficient at the pattern's lowest frequency.

    Over the tile without its margin, a whole number of periods.
    """
    rows, columns = {
      "vertical": (0, 1),
      "horizontal": (1, 0),
      "checkers": (1, 1),
      "dots": (0, 1),
    }[self.kind]
    inside = slice(MARGIN, TILE - MARGIN)
    y, x = np.mgrid[inside, inside]
    angle = 2 * np.pi * (rows * y + columns * x) / self.period
    return complex((tile[inside, inside] * np.exp(-1j * angle)).sum())


ALL = tuple(Pattern(kind, period) for kind in KINDS for period in PERIODS)


@dataclasses.dataclass(frozen=True)
class Response:
  """What a reconstruction keeps of a pattern.

  Attributes:
    contrast: amplitude at the pattern's frequency over the original's; 1
      keeps it, 0 leaves a uniform grey.
    phase: by how much it is shifted, in degrees from 0 to 180; None where the
      contrast is below 0.05.
  """

  pattern: Pattern
  contrast: float
  phase: float | None


def pattern_charts(side: int) -> Images:
  """Images of all patterns, in tiles from left to right, the rest grey.

  Args:
    side: of the images, `TILE` pixels or more.
  """
  across = side // TILE
  count = -(-len(ALL) // across**2)
  charts = np.full((count, side, side, 3), GREY, np.uint8)
  for i, pattern in enumerate(ALL):
    chart, rows, columns = _place(i, across)
    charts[chart, rows, columns] = pattern.tile()[..., None]
  return charts


def responses(charts: Images) -> list[Response]:
  """What reconstructions of `pattern_charts` keep, by pattern."""
  across = charts.shape[1] // TILE
  found = []
  for i, pattern in enumerate(ALL):
    tile = charts[_place(i, across)].mean(-1)
    ratio = pattern.component(tile) / pattern.component(pattern.tile())
    contrast = abs(ratio)
    phase = abs(float(np.degrees(np.angle(ratio))))
    found.append(
      Response(pattern, contrast, phase if contrast > 0.05 else None)
    )
  return found


def summary(found: Sequence[Response]) -> dict[str, float]:
  """Mean contrast of fine (2 to 4 px) and coarse patterns, and mean phase."""
  fine = [r.contrast for r in found if r.pattern.period <= 4]
  coarse = [r.contrast for r in found if r.pattern.period > 4]
  phases = [r.phase for r in found if r.phase is not None]
  metrics = {
    "contrast_2_to_4_px": float(np.mean(fine)),
    "contrast_6_to_16_px": float(np.mean(coarse)),
  }
  return metrics | ({"phase_degrees": float(np.mean(phases))} if phases else {})


def overview(charts: Images) -> UInt8[np.ndarray, "h w 3"]:
  """A row of tiles for each kind, a column for each of four periods."""
  across = charts.shape[1] // TILE
  shown = (2, 4, 8, 16)
  tiles = {pattern: charts[_place(i, across)] for i, pattern in enumerate(ALL)}
  inside = slice(MARGIN, TILE - MARGIN)
  return np.concatenate(
    [
      np.concatenate(
        [tiles[Pattern(kind, p)][inside, inside] for p in shown], axis=1
      )
      for kind in KINDS
    ]
  )


def _place(i: int, across: int) -> tuple[int, slice, slice]:
  """The chart of the i-th pattern, and its rows and columns there."""
  chart, cell = divmod(i, across**2)
  row, column = divmod(cell, across)
  span = lambda k: slice(k * TILE, (k + 1) * TILE)
  return chart, span(row), span(column)
