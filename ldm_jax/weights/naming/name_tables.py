"""Tables of module names, for this package and other libraries.

A network's table (unet.tsv, autoencoder.tsv, ...) has a row for each of its
modules; leaves.tsv has the parameters of each kind of module. Names contain
numbers in braces: those in a path of this package are read from it, others are
derived.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ldm_jax.weights.naming.convert import read_text

COLUMNS = ("diffusers", "compvis")
EMPTY = "-"  # in a table: an empty name, or no name


class Leaf(NamedTuple):
  """A parameter of a kind of module.

  Attributes:
    path: pattern of its path within the module.
    foreign_names, layouts: by column.
  """

  path: re.Pattern
  foreign_names: dict[str, str]
  layouts: dict[str, str]


class ModuleNames(NamedTuple):
  """A module of a network.

  Attributes:
    path: pattern of its path.
    foreign_names: by column.
    kinds: keys of `NameTables.leaves`, joined by "|".
  """

  path: re.Pattern
  foreign_names: dict[str, str]
  kinds: str


class NameTables(NamedTuple):
  """A network's modules, foreign names to ignore, and parameters by kind."""

  modules: tuple[ModuleNames, ...]
  ignored: tuple[dict[str, str], ...]
  leaves: dict[str, tuple[Leaf, ...]]

  def find(
    self, column: str, path: str, derive: Callable[[dict[str, int]], dict]
  ) -> tuple[str, str] | None:
    """(foreign name, layout) of a parameter, or None if it has no name.

    Args:
      column: one of COLUMNS.
      derive: the values of all names in braces, given the numbers of the path.
    """
    for module in self.modules:
      match = module.path.match(path)
      if match is None or module.foreign_names[column] == EMPTY:
        continue
      values = derive({k: int(v) for k, v in match.groupdict().items()})
      for kind in module.kinds.format_map(values).split("|"):
        for leaf in self.leaves[kind]:
          if inner := leaf.path.fullmatch(path[match.end() :]):
            parts = [module.foreign_names[column], leaf.foreign_names[column]]
            name = ".".join(part for part in parts if part != EMPTY)
            name = name.format_map(values | inner.groupdict())
            return name, leaf.layouts[column]
    return None

  def ignore(self, column: str, values: Mapping[str, Any]) -> list[str]:
    """Patterns of foreign names that are not used."""
    patterns = [names[column].format_map(values) for names in self.ignored]
    return [pattern for pattern in patterns if pattern != EMPTY]


@functools.cache
def read_name_tables(name: str) -> NameTables:
  """The modules of ldm_jax/weights/naming/tables/NAME.tsv, with leaves.tsv."""
  modules, ignored, leaves = [], [], {}
  for path, *foreign, kinds in _cells(name):
    names = dict(zip(COLUMNS, foreign, strict=True))
    if kinds == "ignore":
      ignored.append(names)
    else:
      modules.append(ModuleNames(_pattern(path), names, kinds))
  for kind, path, *foreign in _cells("leaves"):
    names = dict(zip(COLUMNS, foreign[::2], strict=True))
    layouts = dict(zip(COLUMNS, foreign[1::2], strict=True))
    leaves.setdefault(kind, []).append(Leaf(_pattern(path), names, layouts))
  return NameTables(
    tuple(modules),
    tuple(ignored),
    {kind: tuple(group) for kind, group in leaves.items()},
  )


def _cells(name: str) -> Iterable[list[str]]:
  for line in read_text(name).splitlines():
    if line and not line.startswith("#"):
      yield line.split("\t")


def _pattern(path: str) -> re.Pattern:
  """Matches a path, or its beginning up to a "/"; numbers are named groups."""
  if path == EMPTY:
    return re.compile("$")
  numbered = re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", path)
  return re.compile(rf"{numbered}(?:/|$)")
