"""Conversion of weights of other libraries, and back, by tables of names."""

import collections
import fnmatch
import importlib.resources
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.finite_values import check_finite
from ldm_jax.weights.naming.layouts import LAYOUTS, Part, stack, take

MAX_NAMES = 20  # of each kind that an error lists


class Row(NamedTuple):
  """One parameter here and in a foreign file.

  Attributes:
    path: of the parameter here, joined by "/".
    foreign_name: of the tensor in the file.
    layout: a key of LAYOUTS.
    shape: of the parameter here; None for any.
    part: of the tensor that is the parameter; None for all of it.
  """

  path: str
  foreign_name: str
  layout: str
  shape: tuple[int, ...] | None = None
  part: Part | None = None

  def foreign_shape(self) -> tuple[int, ...] | None:
    """The shape of the foreign tensor; None for any."""
    if self.shape is None:
      return None
    layout = LAYOUTS[self.layout]
    if layout.foreign_shape is not None:
      return layout.foreign_shape(self.shape)
    own = np.broadcast_to(np.int8(0), self.shape)  # takes no memory
    shape = layout.to_foreign(own).shape
    if self.part is None:
      return shape
    return (shape[0] // self.part.span * self.part.count, *shape[1:])


class Table(NamedTuple):
  """Rows, and patterns of foreign names that are not used."""

  rows: tuple[Row, ...]
  ignored: tuple[str, ...]


def make_table(rows: Iterable[Row], ignored: Iterable[str]) -> Table:
  """A table; checks that names are unique and all parts of a tensor are used.

  Raises:
    WeightsError: a name is repeated, or a part is missing.
  """
  rows = tuple(rows)
  for side in (
    [row.path for row in rows],
    [row.foreign_name for row in rows if row.part is None],
    [f"{row.foreign_name} (part {row.part.index})" for row in rows if row.part],
  ):
    if len(set(side)) != len(side):
      raise WeightsError(f"the table repeats {_duplicates(side)}")
  for name, group in by_foreign_name(rows).items():
    counts = {row.part.count if row.part else 1 for row in group}
    if counts != {sum(row.part.span if row.part else 1 for row in group)}:
      raise WeightsError(
        f"{name} is stacked of {max(counts)} parameters, but these are given: "
        f"{', '.join(row.path for row in group)}"
      )
  return Table(rows, tuple(ignored))


def read_table(name: str) -> Table:
  """The table ldm_jax/weights/naming/tables/NAME.tsv."""
  return parse_table(read_text(name))


def read_text(name: str) -> str:
  """The text of ldm_jax/weights/naming/tables/NAME.tsv."""
  folder = importlib.resources.files("ldm_jax.weights.naming") / "tables"
  return (folder / f"{name}.tsv").read_text(encoding="utf-8")


def parse_table(text: str) -> Table:
  """Lines "path<TAB>foreign name<TAB>layout", or "-<TAB>pattern<TAB>ignore".

  Raises:
    WeightsError: a line has another form, or a name is repeated.
  """
  rows, ignored = [], []
  for line in text.splitlines():
    if not line or line.startswith("#"):
      continue
    cells = line.split("\t")
    if len(cells) == 3 and cells[2] == "ignore" and cells[0] == "-":
      ignored.append(cells[1])
    elif len(cells) == 3 and cells[2] in LAYOUTS:
      rows.append(Row(*cells))
    else:
      raise WeightsError(
        f"table line {line!r}: expected path, foreign name and one of "
        f"{', '.join(LAYOUTS)}, with tabs between; or -, a pattern, ignore"
      )
  return make_table(rows, ignored)


def convert(
  table: Table,
  tensors: Mapping[str, np.ndarray],
  *,
  place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
  """Foreign tensors as a nested dict of parameters.

  Tensors are read one after another, and stay views of the file wherever their
  layout allows it. Trailing axes of length one are ignored: a 1 x 1 convolution
  may be given as a matrix, and a matrix as a convolution.

  Args:
    place: (path, array) -> the parameter to keep, such as a cast or a copy on a
      device; called for one at a time.

  Raises:
    WeightsError: names of the table are missing among the tensors, or tensors
      are not in the table (listed with their shapes), or a shape does not fit.
    NonFiniteWeights: a tensor holds NaN or infinity.
  """
  check_tensors(table, tensors)
  keep = place or (lambda _, array: array)
  return nested(table, lambda row: keep(row.path, read_row(row, tensors)))


def check_tensors(table: Table, tensors: Mapping[str, np.ndarray]) -> None:
  """Raises WeightsError for missing and unexpected names."""
  needed = {row.foreign_name: row.foreign_shape() for row in table.rows}
  found = [
    name
    for name in tensors
    if name in needed
    or not any(fnmatch.fnmatchcase(name, p) for p in table.ignored)
  ]
  _check_names(needed, found, lambda name: np.shape(tensors[name]))


def nested(table: Table, make: Callable[[Row], Any]) -> dict[str, Any]:
  """A nested dict of what `make` returns for every row."""
  params = {}
  for row in table.rows:
    *parents, leaf = row.path.split("/")
    node = params
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = make(row)
  return params


def read_row(row: Row, tensors: Mapping) -> np.ndarray:
  """A row's parameter, of finite numbers."""
  tensor = tensors[row.foreign_name]
  return _from_foreign(row, check_finite(row.foreign_name, tensor))


def revert(table: Table, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `convert`, without the tensors that the table ignores.

  Raises:
    WeightsError: as `convert`.
  """
  own = checked_leaves(table, params)
  groups = by_foreign_name(table.rows)
  return {name: foreign_tensor(rows, own) for name, rows in groups.items()}


def checked_leaves(table: Table, params: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters by path; raises WeightsError for other names."""
  own = dict(_leaves(params, ""))
  needed = {row.path: row.shape for row in table.rows}
  _check_names(needed, own, lambda name: np.shape(own[name]))
  return own


def foreign_tensor(rows: list[Row], own: Mapping[str, Any]) -> np.ndarray:
  """The tensor of which the rows are the parts."""
  arrays = [_to_foreign(row, np.asarray(own[row.path])) for row in rows]
  part = rows[0].part
  return stack(arrays, part.heads) if part else arrays[0]


def shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Shapes by path of a nested dict of arrays or of ShapeDtypeStructs."""
  return {name: tuple(leaf.shape) for name, leaf in _leaves(params, "")}


def by_foreign_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
  """Rows by foreign tensor, in the order of their parts."""
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row.foreign_name].append(row)
  for group in groups.values():
    group.sort(key=lambda row: row.part.index if row.part else 0)
  return groups


def _from_foreign(row: Row, tensor: np.ndarray) -> np.ndarray:
  needed, found = row.foreign_shape(), tensor.shape
  if needed is None:
    _check_rank(row.foreign_name, tensor, row.layout, 1)
  elif _without_ones(found) == _without_ones(needed):
    tensor = tensor.reshape(needed)
  else:
    raise WeightsError(
      f"{row.foreign_name} has shape {found}; {needed} is needed for "
      f"{row.path} {row.shape}"
    )
  if row.part is not None:
    tensor = take(tensor, row.part)
  return LAYOUTS[row.layout].from_foreign(tensor)


def _to_foreign(row: Row, array: np.ndarray) -> np.ndarray:
  _check_rank(row.path, array, row.layout, 0)
  if row.shape not in (None, array.shape):
    raise WeightsError(
      f"{row.path} has shape {array.shape}; {row.shape} is needed for "
      f"{row.foreign_name} {row.foreign_shape()}"
    )
  return LAYOUTS[row.layout].to_foreign(array)


def _without_ones(shape):
  while shape and shape[-1] == 1:
    shape = shape[:-1]
  return shape


def _leaves(node, prefix):
  for name, child in node.items():
    if isinstance(child, Mapping):
      yield from _leaves(child, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", child


def _check_names(needed, found, shape_of):
  missing = sorted(needed.keys() - set(found))
  unexpected = sorted(set(found) - needed.keys())
  if missing or unexpected:
    raise WeightsError(
      "names do not match the table: "
      f"missing {list_names(missing, needed.get)}; "
      f"unexpected {list_names(unexpected, shape_of)}"
    )


def list_names(
  names: list[str], shape_of: Callable[[str], tuple[int, ...] | None]
) -> str:
  """The first names with their shapes, and how many more there are."""
  first = names[:MAX_NAMES]
  listed = [f"{n} {s}" if (s := shape_of(n)) is not None else n for n in first]
  if len(names) > MAX_NAMES:
    listed.append(f"and {len(names) - MAX_NAMES} more")
  return ", ".join(listed) or "none"


def _check_rank(name, tensor, layout, side):
  ranks = LAYOUTS[layout].ranks
  if ranks is not None and tensor.ndim != ranks[side]:
    raise WeightsError(
      f"{name} has shape {tensor.shape}; layout {layout!r} needs rank "
      f"{ranks[side]}"
    )


def _duplicates(names):
  return ", ".join(sorted({name for name in names if names.count(name) > 1}))
