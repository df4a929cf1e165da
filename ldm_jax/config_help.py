"""Every field of an experiment, with its type, value and meaning."""

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Iterator
from typing import Any

from ldm_jax.fields.checks import annotation, fields, is_nodes, limit


@dataclasses.dataclass(frozen=True)
class FieldRow:
  """One field that `--config.PATH=VALUE` can set.

  Attributes:
    path: dotted, from the experiment.
    type: as annotated.
    value: the present one; a class's name for a node.
    doc: what the class's docstring says of it, in one line, or "".
    file: where its class is defined.
  """

  path: str
  type: str
  value: str
  doc: str
  file: str

  def __str__(self) -> str:
    line = f"--config.{self.path}={self.value}  ({self.type})  [{self.file}]"
    return f"{line}\n    {self.doc}" if self.doc else line


def field_rows(node: Any, prefix: str = "") -> list[FieldRow]:
  """The fields of a config node and of all nodes in it, parents first."""
  return list(_rows(node, prefix))


def paths_named(node: Any, name: str) -> list[str]:
  """Dotted paths of the fields with this last name, the shortest first."""
  paths = [row.path for row in field_rows(node)]
  found = [path for path in paths if path.rpartition(".")[2] == name]
  return sorted(found, key=lambda path: (path.count("."), path))


def _rows(node: Any, prefix: str) -> Iterator[FieldRow]:
  kind = type(node)
  docs, file = _attribute_docs(kind), _source_file(kind)
  for field in fields(node):
    value, path = getattr(node, field.name), prefix + field.name
    yield FieldRow(
      path,
      _type_name(annotation(node, field)) + _limit_text(node, field),
      _text(value),
      docs.get(field.name, ""),
      file,
    )
    if dataclasses.is_dataclass(value):
      yield from _rows(value, f"{path}.")
    elif is_nodes(value):
      for i, item in enumerate(value):
        if dataclasses.is_dataclass(item):
          yield from _rows(item, f"{path}.{i}.")


def _text(value: Any) -> str:
  if dataclasses.is_dataclass(value):
    return type(value).__name__
  if is_nodes(value):
    return f"({', '.join(map(_text, value))})"
  return "none" if value is None else str(value)


def _limit_text(node: Any, field: dataclasses.Field) -> str:
  """A field's limits after its type: ", 1 or more"."""
  limits = limit(node, field)
  return f", {limits}" if limits else ""


def _type_name(kind: Any) -> str:
  """An annotation for display: names without their modules."""
  text = kind.__name__ if inspect.isclass(kind) else str(kind)
  if typing.get_args(kind):
    text = str(kind)
  return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def _attribute_docs(kind: type) -> dict[str, str]:
  """{field: meaning} of the "Attributes:" section of a class's docstring."""
  text = inspect.getdoc(kind) or ""
  section = text.partition("Attributes:\n")[2]
  docs: dict[str, str] = {}
  names: list[str] = []
  for line in section.splitlines():
    entry = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
    if entry:
      names = entry[1].split(", ")
      docs |= dict.fromkeys(names, entry[2].strip())
    elif line.startswith("    "):
      docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
    elif line.strip():
      break
  return docs


def _source_file(kind: type) -> str:
  """A class's file, from the folder that holds its top-level package."""
  try:
    file = inspect.getsourcefile(kind) or ""
  except (OSError, TypeError):
    return kind.__module__
  depth = kind.__module__.count(".") + 1
  if os.path.basename(file) == "__init__.py":
    depth += 1
  return os.path.join(*file.split(os.sep)[-depth:]) if file else ""
