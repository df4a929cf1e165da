"""Array layouts of other libraries: transposed, squeezed or stacked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
  """Conversion between an array of this package and a foreign one.

  Both functions return views.

  Attributes:
    ranks: of the own and of the foreign array; None for any.
  """

  ranks: tuple[int, int] | None
  from_foreign: Callable[[np.ndarray], np.ndarray]
  to_foreign: Callable[[np.ndarray], np.ndarray]


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
}


class Part(NamedTuple):
  """The part of a stacked foreign array that is one parameter here.

  Attributes:
    index: of the part, from 0.
    count: number of parts.
    heads: 1 if the parts follow each other along the first axis; otherwise that
      axis is divided into so many heads, and each head into the parts.
  """

  index: int
  count: int
  heads: int = 1


def take(stacked: np.ndarray, part: Part) -> np.ndarray:
  """One part of a stacked array: a view for one head, else a copy."""
  parts = stacked.reshape(part.heads, part.count, -1, *stacked.shape[1:])
  return parts[:, part.index].reshape(-1, *stacked.shape[1:])


def stack(arrays: Sequence[np.ndarray], heads: int) -> np.ndarray:
  """The inverse of `take`: `arrays` are all parts, in order."""
  rest = arrays[0].shape[1:]
  parts = [array.reshape(heads, -1, *rest) for array in arrays]
  return np.stack(parts, axis=1).reshape(-1, *rest)
