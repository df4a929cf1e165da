"""Foreign names and layouts turned into ours, and back, by tables of names."""

import collections
import fnmatch
import importlib.resources
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.errors import NonFiniteWeights, WeightsError
from ldm_jax.weights.naming.layouts import LAYOUTS, Part, stack, take

MOST_NAMES = 20  # that an error lists of either side


class Row(NamedTuple):
  """One parameter, here and there.

  Attributes:
    ours: its path, joined by "/".
    theirs: the foreign name.
    layout: a word of LAYOUTS.
    shape: ours, or None if any will do.
    part: of theirs that is ours, or None for the whole.
  """

  path: str
  foreign_name: str
  layout: str
  shape: tuple[int, ...] | None = None
  part: Part | None = None

  def foreign_shape(self) -> tuple[int, ...] | None:
    """Their shape for ours, or None if any will do."""
    if self.shape is None:
      return None
    ours = np.broadcast_to(np.int8(0), self.shape)  # takes no memory
    shape = LAYOUTS[self.layout].to_foreign(ours).shape
    if self.part is None:
      return shape
    return (shape[0] * self.part.count, *shape[1:])


class Table(NamedTuple):
  """Rows, and patterns of foreign names that we have no use for."""

  rows: tuple[Row, ...]
  ignored: tuple[str, ...]


def make_table(rows: Iterable[Row], ignored: Iterable[str]) -> Table:
  """A table whose every name is used once, a stacked one once per part.

  Raises:
    WeightsError: a name stands twice on a side, or a part is missing.
  """
  rows = tuple(rows)
  for side in (
    [row.path for row in rows],
    [row.foreign_name for row in rows if row.part is None],
    [f"{row.foreign_name} (part {row.part.index})" for row in rows if row.part],
  ):
    if len(set(side)) != len(side):
      raise WeightsError(f"the table repeats {_duplicates(side)}")
  for name, group in _by_foreign_name(rows).items():
    counts = {row.part.count if row.part else 1 for row in group}
    if counts != {len(group)}:
      raise WeightsError(
        f"{name} is stacked of {max(counts)}, but of ours there are "
        f"{', '.join(row.path for row in group)}"
      )
  return Table(rows, tuple(ignored))


def read_table(name: str) -> Table:
  """The table ldm_jax/weights/NAME.tsv."""
  return parse_table(read_text(name))


def read_text(name: str) -> str:
  """The text of ldm_jax/weights/NAME.tsv."""
  file = importlib.resources.files("ldm_jax.weights").joinpath(f"{name}.tsv")
  return file.read_text(encoding="utf-8")


def parse_table(text: str) -> Table:
  """Lines "ours<TAB>theirs<TAB>layout", or "-<TAB>pattern<TAB>ignore".

  Raises:
    WeightsError: a line is not of that form, or a name stands twice on a side.
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
        f"table line {line!r}: needed are ours, theirs and one of "
        f"{', '.join(LAYOUTS)}, with tabs between; or -, a pattern, ignore"
      )
  return make_table(rows, ignored)


def convert(
  table: Table,
  tensors: Mapping[str, np.ndarray],
  *,
  place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
  """Foreign tensors as a nested dict of parameters: names, then layouts.

  Tensors are read one after another and stay views of what was read wherever
  their layout allows it. Axes of length one at the end of a shape are free: a
  1 x 1 convolution may come as a matrix, and a matrix as a convolution.

  Args:
    place: what is kept of a parameter, given its path and array: a cast, a
      copy on a device. Called as each is made.

  Raises:
    WeightsError: a name of the table is not among the tensors or the reverse
      (they are listed with their shapes), or a tensor's shape does not fit.
    NonFiniteWeights: a tensor holds what is not a finite number.
  """
  needed = {row.foreign_name: row.foreign_shape() for row in table.rows}
  found = [
    name
    for name in tensors
    if name in needed
    or not any(fnmatch.fnmatchcase(name, p) for p in table.ignored)
  ]
  _check_names(needed, found, lambda name: np.shape(tensors[name]))
  keep = place or (lambda _, array: array)
  params = {}
  for row in table.rows:
    *places, leaf = row.path.split("/")
    node = params
    for name in places:
      node = node.setdefault(name, {})
    node[leaf] = keep(
      row.path,
      _to_ours(row, _finite(row.foreign_name, tensors[row.foreign_name])),
    )
  return params


def _finite(name: str, array: np.ndarray) -> np.ndarray:
  """The same tensor; raises NonFiniteWeights if some of it is no number."""
  if array.dtype.kind in "iub":
    return array
  odd = array.size - int(np.isfinite(array).sum())
  if odd:
    raise NonFiniteWeights(
      f"{name} has {odd} values of {array.size} that are not finite; such "
      "weights draw nothing"
    )
  return array


def revert(table: Table, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `convert`, less what the table ignores.

  Raises:
    WeightsError: as `convert`.
  """
  ours = dict(_leaves(params, ""))
  needed = {row.path: row.shape for row in table.rows}
  _check_names(needed, ours, lambda name: np.shape(ours[name]))
  tensors = {}
  for name, rows in _by_foreign_name(table.rows).items():
    arrays = [_to_theirs(row, np.asarray(ours[row.path])) for row in rows]
    part = rows[0].part
    tensors[name] = stack(arrays, part.heads) if part else arrays[0]
  return tensors


def shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Shapes by path of nested arrays, or of what eval_shape made of them."""
  return {name: tuple(leaf.shape) for name, leaf in _leaves(params, "")}


def _by_foreign_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
  """Rows of one foreign tensor together, in the order of their parts."""
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row.foreign_name].append(row)
  for group in groups.values():
    group.sort(key=lambda row: row.part.index if row.part else 0)
  return groups


def _to_ours(row: Row, tensor: np.ndarray) -> np.ndarray:
  needed, found = row.foreign_shape(), tensor.shape
  if needed is None:
    _check_rank(row.foreign_name, tensor, row.layout, 1)
  elif _without_ones(found) == _without_ones(needed):
    tensor = tensor.reshape(needed)
  else:
    raise WeightsError(
      f"{row.foreign_name} has shape {found}; {needed} is needed for our "
      f"{row.path} {row.shape}"
    )
  if row.part is not None:
    tensor = take(tensor, row.part)
  return LAYOUTS[row.layout].from_foreign(tensor)


def _to_theirs(row: Row, array: np.ndarray) -> np.ndarray:
  _check_rank(row.path, array, row.layout, 0)
  if row.shape not in (None, array.shape):
    raise WeightsError(
      f"{row.path} has shape {array.shape}; {row.shape} is needed for their "
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
  first = names[:MOST_NAMES]
  words = [f"{n} {s}" if (s := shape_of(n)) is not None else n for n in first]
  if len(names) > MOST_NAMES:
    words.append(f"and {len(names) - MOST_NAMES} more")
  return ", ".join(words) or "none"


def _check_rank(name, tensor, layout, side):
  ranks = LAYOUTS[layout].ranks
  if ranks is not None and tensor.ndim != ranks[side]:
    raise WeightsError(
      f"{name} has shape {tensor.shape}; layout {layout!r} needs rank "
      f"{ranks[side]}"
    )


def _duplicates(names):
  return ", ".join(sorted({name for name in names if names.count(name) > 1}))
