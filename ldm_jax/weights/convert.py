"""Foreign names and layouts turned into ours, and back, by tables of names."""

import fnmatch
import importlib.resources
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.weights.errors import WeightsError


class Layout(NamedTuple):
  """How a foreign array of some rank becomes ours, and how ours goes back."""

  rank: int | None
  to_ours: Callable[[np.ndarray], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


LAYOUTS = {
  "same": Layout(None, lambda x: x, lambda x: x),
  "conv": Layout(  # OIHW, HWIO
    4, lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
  ),
}


class Row(NamedTuple):
  """One parameter: our path, joined by "/", their name, a word of LAYOUTS."""

  ours: str
  theirs: str
  layout: str


class Table(NamedTuple):
  """Rows, and patterns of foreign names that we have no use for."""

  rows: tuple[Row, ...]
  ignored: tuple[str, ...]


def read_table(name: str) -> Table:
  """The table ldm_jax/weights/NAME.tsv."""
  file = importlib.resources.files("ldm_jax.weights").joinpath(f"{name}.tsv")
  return parse_table(file.read_text(encoding="utf-8"))


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
  for side in ([row.ours for row in rows], [row.theirs for row in rows]):
    if len(set(side)) != len(side):
      raise WeightsError(f"the table repeats {_duplicates(side)}")
  return Table(tuple(rows), tuple(ignored))


def convert(table: Table, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Foreign tensors as a nested dict of parameters: names, then layouts.

  Raises:
    WeightsError: a name of the table is not among the tensors or the reverse
      (all such names are listed), or a tensor's rank does not fit its layout.
  """
  foreign = {
    name: tensor
    for name, tensor in tensors.items()
    if not any(fnmatch.fnmatchcase(name, p) for p in table.ignored)
  }
  _check_names({row.theirs for row in table.rows}, foreign)
  params = {}
  for row in table.rows:
    *places, leaf = row.ours.split("/")
    node = params
    for place in places:
      node = node.setdefault(place, {})
    _check_rank(row.theirs, foreign[row.theirs], row.layout)
    node[leaf] = LAYOUTS[row.layout].to_ours(foreign[row.theirs])
  return params


def revert(table: Table, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `convert`, less what the table ignores.

  Raises:
    WeightsError: as `convert`.
  """
  ours = dict(_leaves(params, ""))
  _check_names({row.ours for row in table.rows}, ours)
  tensors = {}
  for row in table.rows:
    _check_rank(row.ours, ours[row.ours], row.layout)
    tensors[row.theirs] = LAYOUTS[row.layout].to_theirs(ours[row.ours])
  return tensors


def _leaves(node, prefix):
  for name, child in node.items():
    if isinstance(child, Mapping):
      yield from _leaves(child, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", np.asarray(child)


def _check_names(needed, found):
  missing, unexpected = sorted(needed - set(found)), sorted(set(found) - needed)
  if missing or unexpected:
    raise WeightsError(
      f"names do not match the table: missing {', '.join(missing) or 'none'}; "
      f"unexpected {', '.join(unexpected) or 'none'}"
    )


def _check_rank(name, tensor, layout):
  rank = LAYOUTS[layout].rank
  if rank not in (None, tensor.ndim):
    raise WeightsError(
      f"{name} has shape {tensor.shape}; layout {layout!r} needs rank {rank}"
    )


def _duplicates(names):
  return ", ".join(sorted({name for name in names if names.count(name) > 1}))
