"""The tables of places and leaves: patterns of our paths, and foreign names.

A network's table (unet.tsv, autoencoder.tsv, ...) names its places; leaves.tsv
names what a place of each kind holds. Numbers stand in braces: those in a
pattern of ours are read from the path, the others must be given.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ldm_jax.weights.naming.convert import read_text

COLUMNS = ("diffusers", "compvis")
NOTHING = "-"  # how the tables write an empty name, or that there is none


class Leaf(NamedTuple):
  """What a place holds: a pattern of ours; names and layouts by column."""

  ours: re.Pattern
  theirs: dict[str, str]
  layouts: dict[str, str]


class ModuleNames(NamedTuple):
  """A pattern of ours, names by column, and the kinds of leaves, a|b."""

  ours: re.Pattern
  theirs: dict[str, str]
  kinds: str


class NameTables(NamedTuple):
  """A network's places, patterns of names to ignore, and leaves by kind."""

  places: tuple[ModuleNames, ...]
  ignored: tuple[dict[str, str], ...]
  leaves: dict[str, tuple[Leaf, ...]]

  def find(
    self, column: str, path: str, derive: Callable[[dict[str, int]], dict]
  ) -> tuple[str, str] | None:
    """The foreign name of a path and its layout, or None if it has none.

    Args:
      derive: all that may stand in braces, given the numbers of the path.
    """
    for place in self.places:
      match = place.ours.match(path)
      if match is None or place.theirs[column] == NOTHING:
        continue
      values = derive({k: int(v) for k, v in match.groupdict().items()})
      for kind in place.kinds.format_map(values).split("|"):
        for leaf in self.leaves[kind]:
          if inner := leaf.ours.fullmatch(path[match.end() :]):
            parts = [place.theirs[column], leaf.theirs[column]]
            name = ".".join(part for part in parts if part != NOTHING)
            name = name.format_map(values | inner.groupdict())
            return name, leaf.layouts[column]
    return None

  def ignore(self, column: str, values: Mapping[str, Any]) -> list[str]:
    """Patterns of names that we have no use for."""
    patterns = [names[column].format_map(values) for names in self.ignored]
    return [pattern for pattern in patterns if pattern != NOTHING]


@functools.cache
def read_name_tables(name: str) -> NameTables:
  """The places of ldm_jax/weights/NAME.tsv, and all leaves."""
  places, ignored, leaves = [], [], {}
  for ours, *theirs, kinds in _cells(name):
    names = dict(zip(COLUMNS, theirs, strict=True))
    if kinds == "ignore":
      ignored.append(names)
    else:
      places.append(ModuleNames(_pattern(ours), names, kinds))
  for kind, ours, *theirs in _cells("leaves"):
    names = dict(zip(COLUMNS, theirs[::2], strict=True))
    layouts = dict(zip(COLUMNS, theirs[1::2], strict=True))
    leaves.setdefault(kind, []).append(Leaf(_pattern(ours), names, layouts))
  return NameTables(
    tuple(places),
    tuple(ignored),
    {kind: tuple(group) for kind, group in leaves.items()},
  )


def _cells(name: str) -> Iterable[list[str]]:
  for line in read_text(name).splitlines():
    if line and not line.startswith("#"):
      yield line.split("\t")


def _pattern(ours: str) -> re.Pattern:
  """Numbers as groups; it matches up to where a part of a path ends."""
  if ours == NOTHING:
    return re.compile("$")
  numbered = re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", ours)
  return re.compile(rf"{numbered}(?:/|$)")
