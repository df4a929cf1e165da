"""Array layouts of other libraries: transposed, squeezed or stacked."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights import mmap_files


class Layout(NamedTuple):
  """Conversion between an array of this package and a foreign one.

  Both functions return views, but for "grid".

  Attributes:
    ranks: of the own and of the foreign array; None for any.
    foreign_shape: of an own shape; None where it is that of `to_foreign`.
  """

  ranks: tuple[int, int] | None
  from_foreign: Callable[[np.ndarray], np.ndarray]
  to_foreign: Callable[[np.ndarray], np.ndarray]
  foreign_shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None


def axes_of_grid(grid: np.ndarray) -> np.ndarray:
  """[n d] of [1 n*n d]: features of a column, then those of a row.

  Raises:
    WeightsError: the first half of the features is not a function of the column
      alone, and the second of the row.
  """
  side = math.isqrt(grid.shape[1])
  half = grid.shape[2] // 2
  table = grid.reshape(side, side, -1)
  columns, rows = table[0, :, :half].copy(), []
  for line in table:  # one at a time: all are hundreds of megabytes
    rows.append(line[0, half:].copy())
    is_fixed = (line[:, :half] == columns).all()
    if not is_fixed or (line[:, half:] != rows[-1]).any():
      raise WeightsError(
        f"positions of shape {grid.shape} are no fixed table of rows and "
        "columns; learned positions are not read"
      )
    mmap_files.release_pages(line)
  return np.concatenate([columns, np.stack(rows)], axis=-1)


def grid_of_axes(axes: np.ndarray) -> np.ndarray:
  """The inverse of `axes_of_grid`."""
  (side, width), half = axes.shape, axes.shape[1] // 2
  columns, rows = axes[None, :, :half], axes[:, None, half:]
  shape = side, side
  grid = np.concatenate(
    [
      np.broadcast_to(columns, (*shape, half)),
      np.broadcast_to(rows, (*shape, width - half)),
    ],
    axis=-1,
  )
  return grid.reshape(1, side * side, width)


LAYOUTS = {
  "same": Layout(None, lambda x: x, lambda x: x),
  "conv": Layout(  # HWIO, OIHW
    (4, 4), lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
  ),
  "dense": Layout((2, 2), lambda x: x.T, lambda x: x.T),  # IO, OI
  "pointwise": Layout(  # IO, OI11: a matrix stored as a 1 x 1 convolution
    (2, 4), lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
  ),
  "line": Layout(  # IO, OI1: the same over one dimension
    (2, 3), lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None]
  ),
  "grid": Layout(  # positions of a square of patches, by axis
    (2, 3),
    axes_of_grid,
    grid_of_axes,
    lambda shape: (1, shape[0] * shape[0], shape[1]),
  ),
}


class Part(NamedTuple):
  """The part of a stacked foreign array that is one parameter here.

  Attributes:
    index: of the part, from 0.
    count: number of parts.
    heads: 1 if the parts follow each other along the first axis; otherwise that
      axis is divided into so many heads, and each head into the parts.
    span: how many parts, from `index` on, are the parameter.
  """

  index: int
  count: int
  heads: int = 1
  span: int = 1


def take(stacked: np.ndarray, part: Part) -> np.ndarray:
  """One part of a stacked array: a view for one head, else a copy."""
  parts = stacked.reshape(part.heads, part.count, -1, *stacked.shape[1:])
  own = parts[:, part.index : part.index + part.span]
  return own.reshape(-1, *stacked.shape[1:])


def stack(arrays: Sequence[np.ndarray], heads: int) -> np.ndarray:
  """The inverse of `take`: `arrays` are all parts, in order."""
  rest = arrays[0].shape[1:]
  parts = [array.reshape(heads, -1, *rest) for array in arrays]
  return np.concatenate(parts, axis=1).reshape(-1, *rest)
