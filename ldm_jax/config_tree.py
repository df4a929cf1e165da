"""Trees of frozen dataclasses: their fields by path, and as JSON.

Linen modules are dataclasses too, so a config holds the very objects that run;
there is no second copy of a default and no class found by a string that is not
in a table.
"""

import ast
import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError

_LINEN = {"parent", "name"}  # fields every Linen module has, none of ours


class Change(typing.NamedTuple):
  """One override: what is left of its path, the new text, the whole path."""

  names: list[str]
  text: str
  path: str


def override(node: Any, texts: Mapping[str, str]) -> Any:
  """`node` with the field at every dotted path set to what its text says.

  All at once, so fields that must agree can be changed together.

  Raises:
    ConfigError: no such field, or a value its type does not admit.
  """
  changes = [Change(p.split("."), text, p) for p, text in texts.items()]
  return _override(node, changes)


def _override(node: Any, changes: list[Change]) -> Any:
  groups: dict[str, list[Change]] = {}
  for change in changes:
    field = _field(node, change.names[0], change.path)
    rest = change._replace(names=change.names[1:])
    groups.setdefault(field.name, []).append(rest)
  values = {
    name: _changed(_field(node, name, name), getattr(node, name), group)
    for name, group in groups.items()
  }
  try:
    return dataclasses.replace(node, **values)
  except ValueError as error:
    said = " ".join(f"{c.path}={c.text}" for c in changes)
    raise ConfigError(f"{said}: {error}") from error


def _changed(field: dataclasses.Field, value: Any, group: list[Change]) -> Any:
  """A field's value after the changes below it."""
  *_, last = group
  if not last.names:
    return _parse(field, value, last.text, last.path)
  if dataclasses.is_dataclass(value):
    return _override(value, group)
  if _is_nodes(value):
    return _override_items(value, group)
  raise ConfigError(f"{last.path}: {field.name} is {value!r}, without fields")


def _override_items(items: tuple, group: list[Change]) -> tuple:
  """Nodes in a tuple, told apart by their numbers."""
  items = list(items)
  for change in group:
    number, *names = change.names
    if not number.isdigit() or int(number) >= len(items) or not names:
      raise ConfigError(
        f"{change.path}: after the name comes a number below {len(items)} and "
        "then a field"
      )
    place = int(number)
    items[place] = _override(items[place], [change._replace(names=names)])
  return tuple(items)


def fields(node: Any) -> list[dataclasses.Field]:
  """The fields of a config node that are ours."""
  all_of_them = dataclasses.fields(node)
  is_linen = {field.name for field in all_of_them} >= _LINEN
  return [f for f in all_of_them if not (is_linen and f.name in _LINEN)]


def _field(node: Any, name: str, path: str) -> dataclasses.Field:
  known = {field.name: field for field in fields(node)}
  if name in known:
    return known[name]
  close = difflib.get_close_matches(name, known, 1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  raise ConfigError(
    f"unknown field {path!r}{hint} ({type(node).__name__} has: "
    f"{', '.join(known) or 'none'})"
  )


def _parse(field: dataclasses.Field, value: Any, text: str, path: str) -> Any:
  """The value that `text` means for a field."""
  if text.lower() == "none":
    return _validated(field.type, None, path, text)
  if dataclasses.is_dataclass(value) or _is_nodes(value):
    raise ConfigError(
      f"{path} is a {type(value).__name__}; set one of its fields, or write "
      "it in the config file"
    )
  if field.type is str or field.type == DTypeLike:
    return _validated(field.type, text, path, text)
  try:
    literal = ast.literal_eval(
      {"true": "True", "false": "False"}.get(text.lower(), text)
    )
  except (ValueError, SyntaxError):
    literal = text
  if isinstance(value, tuple) and not isinstance(literal, tuple):
    literal = tuple(literal) if isinstance(literal, list) else (literal,)
  return _validated(field.type, literal, path, text)


def _is_nodes(value: Any) -> bool:
  return isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))


def _validated(kind: Any, value: Any, path: str, text: object) -> Any:
  """`value` if the annotation `kind` admits it as it stands."""
  if kind == DTypeLike:
    try:
      return jnp.dtype(value).name
    except TypeError:
      raise ConfigError(
        f"{path}: expected a number format such as float32 or bfloat16, got "
        f"{text!r}"
      ) from None
  if value is None or _holds_nodes(kind):
    if value in (None, ()) and _admits(kind, value):
      return value
    raise ConfigError(f"{path}: needs {_words(kind)}, got {text!r}")
  import pydantic

  try:
    return pydantic.TypeAdapter(kind).validate_python(value, strict=True)
  except pydantic.ValidationError as error:
    reason = error.errors()[0]["msg"]
    raise ConfigError(f"{path}: {reason}, got {text!r}") from None


def _parts(kind: Any) -> list[Any]:
  """`kind` and everything it is built of."""
  return [kind] + [p for arg in typing.get_args(kind) for p in _parts(arg)]


def _holds_nodes(kind: Any) -> bool:
  """Whether a value of `kind` may be a node: a dataclass, or of a Protocol."""
  is_node = lambda p: (
    dataclasses.is_dataclass(p) or (getattr(p, "_is_protocol", False))
  )
  return any(map(is_node, _parts(kind)))


def _admits(kind: Any, value: tuple | None) -> bool:
  """Whether nothing, or no nodes at all, is a value of `kind`."""
  wanted = type(None) if value is None else tuple
  return any(wanted in (p, typing.get_origin(p)) for p in _parts(kind))


def _words(kind: Any) -> str:
  names = [p.__name__ for p in _parts(kind) if isinstance(p, type)]
  return " or ".join(dict.fromkeys(n for n in names if n != "NoneType"))


def to_json(node: Any) -> Any:
  """A tree of JSON values; every node says its class."""
  if dataclasses.is_dataclass(node):
    values = {
      f.name: jnp.dtype(getattr(node, f.name)).name
      if f.type == DTypeLike
      else to_json(getattr(node, f.name))
      for f in fields(node)
    }
    return {"class": type(node).__name__} | values
  if isinstance(node, tuple):
    return [to_json(item) for item in node]
  if node is None or isinstance(node, str | int | float | bool):
    return node
  raise TypeError(f"a config cannot hold {node!r}")


def node_from_json(tree: Any, classes: Mapping[str, type], path: str) -> Any:
  """The inverse of `to_json`; only the given classes can come to life.

  Raises:
    ConfigError: an unknown class or field, or a value of the wrong type.
  """
  if isinstance(tree, list):
    return tuple(
      node_from_json(item, classes, f"{path}.{i}")
      for i, item in enumerate(tree)
    )
  if not isinstance(tree, Mapping):
    return tree
  kind = classes.get(tree.get("class"))
  if kind is None:
    raise ConfigError(
      f"{path}: class {tree.get('class')!r} is none of {', '.join(classes)}"
    )
  values = {}
  for name, item in tree.items():
    if name == "class":
      continue
    here = f"{path}.{name}"
    field = _field(kind, name, here)
    value = node_from_json(item, classes, here)
    if not dataclasses.is_dataclass(value) and not _is_nodes(value):
      value = _validated(field.type, value, here, value)
    values[name] = value
  try:
    return kind(**values)
  except (TypeError, ValueError) as error:
    raise ConfigError(f"{path}: {error}") from error


def differences(ours: Any, theirs: Any, path: str = "config") -> list[str]:
  """Dotted paths at which two configs differ, with both values."""
  if type(ours) is not type(theirs):
    return [f"{path}: {ours!r} is not {theirs!r}"]
  if dataclasses.is_dataclass(ours):
    return [
      line
      for f in fields(ours)
      for line in differences(
        getattr(ours, f.name), getattr(theirs, f.name), f"{path}.{f.name}"
      )
    ]
  same = json.dumps(to_json(ours)) == json.dumps(to_json(theirs))
  return [] if same else [f"{path}: {ours!r} is not {theirs!r}"]
