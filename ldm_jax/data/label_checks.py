"""Labels, class maps, boxes and ids within what a network has classes for.

An index outside an embedding is no error in jax: -1 reads the last row, which
is often the unconditional one, and one that is too large gives NaN gradients.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import DataError, ImageError


def path_of(source: Any, index: int) -> str:
  """The file of an example, or its number in the source."""
  name = getattr(source, "path_of", None)
  if name is not None:
    return str(name(index))
  place = getattr(source, "path", type(source).__name__)
  return f"example {index} of {place}"


def check_example(
  item: Mapping[str, Any], classes: Mapping[str, int], path: str
) -> None:
  """Checks the arrays of one example that a network reads as classes.

  Args:
    classes: {name of an array: number of classes}; see `label_problem`.
    path: of the example, for the error.

  Raises:
    ImageError: a class of it is outside; of the kind "mislabelled".
  """
  for name, count in classes.items():
    problem = name in item and label_problem(name, item[name], count)
    if problem:
      raise ImageError(path, "mislabelled", problem)


def check_batch(
  batch: Mapping[str, np.ndarray], classes: Mapping[str, int]
) -> None:
  """Raises DataError if a batch has a class outside; see `check_example`."""
  for name, count in classes.items():
    problem = name in batch and label_problem(name, batch[name], count)
    if problem:
      raise DataError(f"a batch cannot be trained on: {problem}")


def label_problem(name: str, value: Any, count: int) -> str:
  """Why `value` is not of whole numbers from 0 to below `count`, or "".

  Of "boxes" [..., k, 5] the last column is the class; rows of class -1 are
  padding, and all other coordinates must lie in [0, 1].
  """
  array = np.asarray(value)
  if name == "boxes":
    rows = array.reshape(-1, 5)
    rows = rows[rows[:, 4] != -1]
    array, corners = rows[:, 4], rows[:, :4]
    if not ((corners >= 0) & (corners <= 1)).all():
      return "boxes has a corner outside of 0 to 1"
  if array.dtype.kind not in "iufb":
    return f"{name} is {value!r}, and needs to be a whole number"
  if array.dtype.kind == "f" and not (array == np.round(array)).all():
    return f"{name} {array[array != np.round(array)][0]} is no whole number"
  if not array.size:
    return ""
  least, most = int(array.min()), int(array.max())
  if least < 0:
    return f"{name} {least} is negative; needed is 0 to {count - 1}"
  if most >= count:
    return (
      f"{name} {most} needs classes={most + 1} or more, the network has {count}"
    )
  return ""
