"""The same conversions with tensors that are read one at a time."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.lazy_tensors import LazyTensor, cast
from ldm_jax.weights.naming.convert import (
  Row,
  Table,
  by_foreign_name,
  check_tensors,
  checked_leaves,
  foreign_tensor,
  nested,
  read_row,
)


def convert_lazily(
  table: Table,
  tensors: Mapping[str, np.ndarray],
  read: Callable[[Row, Mapping[str, np.ndarray]], np.ndarray] = read_row,
) -> dict[str, Any]:
  """`convert.convert` to `LazyTensor`s, in the dtype of the file.

  Args:
    read: a row's parameter.

  Raises:
    WeightsError: names do not match the table. Shapes and values are checked as
      the parameters are read.
  """
  check_tensors(table, tensors)
  return nested(
    table,
    lambda row: LazyTensor(
      row.shape,
      tensors[row.foreign_name].dtype,
      functools.partial(read, row, tensors),
    ),
  )


def revert_lazily(
  table: Table, params: Mapping[str, Any], dtype: np.dtype
) -> dict[str, LazyTensor]:
  """`convert.revert` to tensors that are made and cast when they are read.

  Args:
    params: arrays, or `LazyTensor`s of them.

  Raises:
    WeightsError: names do not match the table.
  """
  own = checked_leaves(table, params)
  return {
    name: LazyTensor(
      _stacked_shape(rows), dtype, functools.partial(_cast, rows, own, dtype)
    )
    for name, rows in by_foreign_name(table.rows).items()
  }


def _cast(
  rows: list[Row], own: Mapping[str, Any], dtype: np.dtype
) -> np.ndarray:
  return cast(foreign_tensor(rows, own), dtype)


def _stacked_shape(rows: list[Row]) -> tuple[int, ...]:
  """The shape of a foreign tensor, which a part's row already counts whole."""
  return rows[0].foreign_shape()
