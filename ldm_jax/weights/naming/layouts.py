"""How a foreign array lies beside ours: transposed, squeezed or stacked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
  """How a foreign array becomes ours, and how ours goes back.

  Both ways give views, and are told the rank they need.

  Attributes:
    ranks: of ours and of theirs, or None if any rank will do.
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
  """Which share of a stacked foreign array is ours.

  Attributes:
    index: of ours among those stacked, from 0.
    count: how many are stacked.
    heads: 1 if they lie one after another along the first axis; otherwise the
      axis is made of so many heads, and they lie so within each.
  """

  index: int
  count: int
  heads: int = 1


def take(stacked: np.ndarray, part: Part) -> np.ndarray:
  """The share of `part`: a view for one head, else a copy of that share."""
  parts = stacked.reshape(part.heads, part.count, -1, *stacked.shape[1:])
  return parts[:, part.index].reshape(-1, *stacked.shape[1:])


def stack(arrays: Sequence[np.ndarray], heads: int) -> np.ndarray:
  """The array whose shares, in order, are `arrays`."""
  rest = arrays[0].shape[1:]
  parts = [array.reshape(heads, -1, *rest) for array in arrays]
  return np.stack(parts, axis=1).reshape(-1, *rest)
