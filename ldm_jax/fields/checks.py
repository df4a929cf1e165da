"""Types and limits of a config's fields: the one check of every config.

It is made when a config is loaded, given to a function, overridden, and read
from a run, so that whatever is trained can be opened again.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import (
  Limit,
  limit_of,
  numbers,
  type_args,
  type_text,
  without_limits,
)

_LINEN = {"parent", "name"}  # fields of every Linen module, not config fields


def fields(node: Any) -> list[dataclasses.Field]:
  """The fields of a node, or of its class, that a config sets."""
  every = [field for field in dataclasses.fields(node) if field.init]
  is_linen = {field.name for field in every} >= _LINEN
  return [f for f in every if not (is_linen and f.name in _LINEN)]


def has_default(field: dataclasses.Field) -> bool:
  """Whether a node can be made without the field."""
  missing = dataclasses.MISSING
  return field.default is not missing or field.default_factory is not missing


def annotation(node: Any, field: dataclasses.Field) -> Any:
  """A field's type; Any where it is a string that cannot be resolved."""
  return without_limits(_annotation(node, field))


def limit(node: Any, field: dataclasses.Field) -> Limit | None:
  """A field's limits, or None."""
  return limit_of(_annotation(node, field))


def _annotation(node: Any, field: dataclasses.Field) -> Any:
  """A field's type with its limit."""
  if not isinstance(field.type, str):
    return field.type
  kind = node if isinstance(node, type) else type(node)
  try:
    return typing.get_type_hints(kind, include_extras=True)[field.name]
  except (NameError, TypeError, KeyError, AttributeError):
    return Any


def is_node(value: Any) -> bool:
  """Whether a value is a dataclass, not one's class."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_nodes(value: Any) -> bool:
  """Whether a value is a tuple that holds nodes."""
  return isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))


def check_tree(node: Any, path: str = "config") -> None:
  """Checks every field of a node and of the nodes in it.

  Raises:
    ConfigError: a value is not of its field's type, is outside its limits, or
      is nothing that a run's config.json can hold; it names the dotted path.
  """
  for field in fields(node):
    value, here = getattr(node, field.name), f"{path}.{field.name}"
    check_field(node, field, value, here)
    for item, below in _nodes(value, here):
      check_tree(item, below)


def check_field(
  node: Any,
  field: dataclasses.Field,
  value: Any,
  path: str,
  text: object = None,
) -> Any:
  """`value` if a field of a node, or of its class, admits it.

  Args:
    text: quoted by errors; the value if None.

  Raises:
    ConfigError: it does not, or no config.json can hold the value.
  """
  text = value if text is None else text
  kind, limits = annotation(node, field), limit(node, field)
  admitted = validated(kind, value, path, text)
  for part, here in _leaves(value, path) if kind != DTypeLike else ():
    if not (part is None or isinstance(part, str | int | float)):
      raise ConfigError(
        f"{here}: needs numbers, text, tuples or frozen dataclasses, which a "
        f"saved run can hold, got {_shown(part)}"
      )
  for number in numbers(admitted):
    needs = None if math.isfinite(number) else "a finite number"
    if limits is not None and not limits.admits(number):
      needs = limits.needs(number)
    if needs:
      raise ConfigError(f"{path}: needs {needs}, got {_shown(text)}")
  return admitted


def validated(kind: Any, value: Any, path: str, text: object) -> Any:
  """`value` if the annotation `kind` admits it without conversion.

  Raises:
    ConfigError: it does not; the message quotes `text`.
  """
  if kind == DTypeLike:
    return _format_name(value, path)
  if kind is Any:
    return value
  if value is None or holds_nodes(kind):
    if _fits(kind, value):
      return value
    raise ConfigError(f"{path}: needs {_type_names(kind)}, got {_shown(text)}")
  import pydantic

  try:
    return _adapter(kind).validate_python(value, strict=True)
  except pydantic.ValidationError as error:
    reason = error.errors()[0]["msg"]
    raise ConfigError(
      f"{path}: {reason}, got {_shown(text)}{_hint(kind, value)}"
    ) from None
  except pydantic.PydanticSchemaGenerationError:
    return value  # a type of the user's own that pydantic does not know


def _format_name(value: Any, path: str) -> str:
  """The name of a floating-point number format."""
  try:
    found = jnp.dtype(value) if value not in (None, [], {}) else None
  except (TypeError, ValueError):
    found = None
  if found is None or not jnp.issubdtype(found, jnp.floating):
    raise ConfigError(
      f"{path}: expected a number format such as float32 or bfloat16, got "
      f"{_shown(value)}"
    )
  return found.name


@functools.cache
def _adapter(kind: Any) -> Any:
  import pydantic

  return pydantic.TypeAdapter(kind)


def _hint(kind: Any, value: Any) -> str:
  """What to write instead of a value, where that is plain."""
  is_number = isinstance(value, float) and math.isfinite(value)
  if int in parts(kind) and is_number and value.is_integer():
    return f"; write {int(value)}"
  return "; write a tuple, ( )" if isinstance(value, list) else ""


def _shown(value: object) -> str:
  """A value in one line of an error message; of a node, its class."""
  if is_node(value):
    return type(value).__name__
  text = " ".join(repr(value).split())
  return text if len(text) <= 80 else f"{text[:77]}..."


def _fits(kind: Any, value: Any) -> bool:
  """Whether a value that is None, a node, or has nodes is of a type."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if kind is Any:
    return True
  if kind in (None, types.NoneType):
    return value is None
  if origin in (typing.Union, types.UnionType):
    return any(_fits(part, value) for part in args)
  if origin is tuple:
    return isinstance(value, tuple) and _items_fit(args, value)
  if is_protocol(kind):
    is_checked = getattr(kind, "_is_runtime_protocol", False)
    return is_node(value) and (not is_checked or isinstance(value, kind))
  if dataclasses.is_dataclass(kind):
    return isinstance(value, kind)
  return value is not None and _is_leaf_of(kind, value)


def _is_leaf_of(kind: Any, value: Any) -> bool:
  """Whether a value other than None is of a type without nodes."""
  try:
    validated(kind, value, "", "")
  except ConfigError:
    return False
  return True


def _items_fit(kinds: tuple[Any, ...], values: tuple[Any, ...]) -> bool:
  if kinds[1:] == (...,):
    return all(_fits(kinds[0], value) for value in values)
  return len(kinds) == len(values) and all(map(_fits, kinds, values))


def _nodes(value: Any, path: str) -> Iterator[tuple[Any, str]]:
  """The nodes that a value is or holds, each with its path."""
  return (pair for pair in _parts_of(value, path) if is_node(pair[0]))


def _leaves(value: Any, path: str) -> Iterator[tuple[Any, str]]:
  """What a value is or holds other than nodes, each with its path."""
  return (pair for pair in _parts_of(value, path) if not is_node(pair[0]))


def _parts_of(value: Any, path: str) -> Iterator[tuple[Any, str]]:
  if not isinstance(value, tuple):
    yield value, path
    return
  for i, item in enumerate(value):
    yield from _parts_of(item, f"{path}.{i}")


@functools.cache
def parts(kind: Any) -> tuple[Any, ...]:
  """`kind` and everything it is built of."""
  return (kind, *(p for arg in type_args(kind) for p in parts(arg)))


def is_protocol(kind: Any) -> bool:
  """Whether a type is a Protocol, which config classes implement."""
  return isinstance(kind, type) and getattr(kind, "_is_protocol", False)


def _is_node_type(kind: Any) -> bool:
  """A config class, or a Protocol that such classes implement."""
  return dataclasses.is_dataclass(kind) or is_protocol(kind)


@functools.cache
def holds_nodes(kind: Any) -> bool:
  """Whether values of a type are nodes, or tuples of them."""
  return any(map(_is_node_type, parts(kind)))


def admits_class(kind: Any, new: type) -> bool:
  """Whether a node of the class `new` is a value of `kind`."""
  return any(
    p is Any
    or is_protocol(p)
    or (dataclasses.is_dataclass(p) and issubclass(new, p))
    for p in parts(kind)
  )


def _type_names(kind: Any) -> str:
  """A type in an error message, such as "Augment"."""
  names = [type_text(p) for p in parts(kind) if isinstance(p, type)]
  return " or ".join(dict.fromkeys(n for n in names if n != "NoneType"))


def class_names(kind: Any) -> str:
  """The config classes of a type, such as "LoRA"."""
  kinds = [p for p in parts(kind) if _is_node_type(p)]
  return " or ".join(dict.fromkeys(p.__name__ for p in kinds))
