"""Trees of frozen dataclasses, and overrides of their fields by dotted path.

Linen modules are dataclasses too, so a config holds the very objects that run;
there is no second copy of a default.
"""

import ast
import dataclasses
import difflib
import typing
from collections.abc import Callable, Mapping
from typing import Any

from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError
from ldm_jax.fields.checks import (
  admits_class,
  annotation,
  check_field,
  class_names,
  fields,
  has_default,
  holds_nodes,
  is_nodes,
  parts,
)

# From the text of an override and its path to a class, or None.
FindClass = Callable[[str, str], type | None]


class Change(typing.NamedTuple):
  """One override: the rest of its path, the new text, the whole path."""

  names: list[str]
  text: str
  path: str


def override(
  node: Any,
  texts: Mapping[str, str],
  find: FindClass = lambda text, path: None,
) -> Any:
  """`node` with the field at every dotted path set to what its text means.

  All changes apply at once, so fields that must agree can be changed together.
  The name of a class puts a new node of it at the path, to which the paths
  below apply; "none" removes a node that is optional.

  Args:
    find: from a class's name to the class; see `config.override`.

  Raises:
    ConfigError: no such field, or a value its type does not admit.
  """
  changes = [Change(p.split("."), text, p) for p, text in texts.items()]
  return _Overrides(find).of_node(node, changes)


@dataclasses.dataclass(frozen=True)
class _Overrides:
  """Applies changes; see `override` for `find`."""

  find: FindClass

  def of_node(self, node: Any, changes: list[Change]) -> Any:
    values = self.values(node, changes)
    return _made(lambda: dataclasses.replace(node, **values), changes)

  def new_node(self, kind: type, changes: list[Change], path: str) -> Any:
    """A node of a class with these changes to its defaults."""
    values = self.values(kind, changes)
    given = [f for f in fields(kind) if f.name in values or has_default(f)]
    missing = [f.name for f in fields(kind) if f not in given]
    if missing:
      raise ConfigError(
        f"{path}: {kind.__name__} needs {', '.join(missing)}; set "
        + " ".join(f"{path}.{name}=VALUE" for name in missing)
      )
    return _made(lambda: kind(**values), changes)

  def values(self, node: Any, changes: list[Change]) -> dict[str, Any]:
    """The changed fields of a node, or of a class's defaults."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
      field = field_of(node, change.names[0], change.path)
      rest = change._replace(names=change.names[1:])
      groups.setdefault(field.name, []).append(rest)
    return {
      name: self.of_field(node, field_of(node, name, name), group)
      for name, group in groups.items()
    }

  def of_field(
    self, node: Any, field: dataclasses.Field, group: list[Change]
  ) -> Any:
    """A field's value after the changes at it and below it."""
    value, kind = current(node, field), annotation(node, field)
    at = [change for change in group if not change.names]
    below = [change for change in group if change.names]
    if at:
      *_, last = at
      takes_nodes = holds_nodes(kind) or Any in parts(kind)
      new = self.find(last.text, last.path) if takes_nodes else None
      if new:
        if not admits_class(kind, new):
          raise ConfigError(
            f"{last.path}: needs {class_names(kind)}, got {last.text!r}"
          )
        return self.new_node(new, below, last.path)
      if not below or last.text.lower() == "none":
        new = _parse(kind, value, last.text, last.path)
        return check_field(node, field, new, last.path, last.text)
    *_, last = group
    if dataclasses.is_dataclass(value):
      return self.of_node(value, below)
    if is_nodes(value):
      return self.of_items(value, below)
    hint = ""
    if value is None and class_names(kind):
      hint = f"; switch it on by its class: {field.name}={class_names(kind)}"
    raise ConfigError(
      f"{last.path}: {field.name} is {value!r}, without fields{hint}"
    )

  def of_items(self, items: tuple, group: list[Change]) -> tuple:
    """A tuple of nodes, which paths name by their index."""
    items = list(items)
    for change in group:
      number, *names = change.names
      if not number.isdigit() or int(number) >= len(items) or not names:
        raise ConfigError(
          f"{change.path}: after the name comes a number below {len(items)} "
          "and then a field"
        )
      index = int(number)
      below = [change._replace(names=names)]
      items[index] = self.of_node(items[index], below)
    return tuple(items)


def _made(make: Callable[[], Any], changes: list[Change]) -> Any:
  """What `make` returns; its ValueError names the changes."""
  try:
    return make()
  except (ValueError, TypeError) as error:
    texts = " ".join(f"{c.path}={c.text}" for c in changes)
    raise ConfigError(f"{texts}: {error}") from error


def field_of(node: Any, name: str, path: str) -> dataclasses.Field:
  """The field `name` of a node or of its class.

  Raises:
    ConfigError: there is none.
  """
  known = {field.name: field for field in fields(node)}
  if name in known:
    return known[name]
  close = difflib.get_close_matches(name, known, 1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  owner = node if isinstance(node, type) else type(node)
  raise ConfigError(
    f"unknown field {path!r}{hint} ({owner.__name__} has: "
    f"{', '.join(known) or 'none'})"
  )


def current(node: Any, field: dataclasses.Field) -> Any:
  """A field's value in a node, or its default in a class; None without one."""
  if not isinstance(node, type):
    return getattr(node, field.name)
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return None


def _parse(kind: Any, value: Any, text: str, path: str) -> Any:
  """The value that `text` means for a field that holds `value` now.

  Of a field of whole numbers, 1e5 means 100000.
  """
  if text.lower() == "none":
    return None
  if dataclasses.is_dataclass(value) or is_nodes(value):
    raise ConfigError(
      f"{path} is a {type(value).__name__}; set one of its fields, name "
      "another class, or write it in the config file"
    )
  if kind is str or kind == DTypeLike:
    return text
  try:
    literal = ast.literal_eval(
      {"true": "True", "false": "False"}.get(text.lower(), text)
    )
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    literal = text
  if isinstance(value, tuple) and not isinstance(literal, tuple):
    literal = tuple(literal) if isinstance(literal, list) else (literal,)
  is_of_ints = int in parts(kind) and float not in parts(kind)
  return _with_ints(literal) if is_of_ints else literal


def _with_ints(value: Any) -> Any:
  """A value with whole floats as ints."""
  if isinstance(value, tuple):
    return tuple(map(_with_ints, value))
  is_whole = isinstance(value, float) and value.is_integer()
  return int(value) if is_whole else value
