"""Types of what Python callers give to the public functions and requests.

More is admitted than by a config (`checks`): NumPy's numbers, lists where
tuples are due, and path objects where a path is text.
"""

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import type_text

Function = TypeVar("Function", bound=Callable)
Class = TypeVar("Class", bound=type)


# The types whose values have that of a key, NumPy's among them.
_NUMBERS: Mapping[type, tuple[type, ...]] = {
  bool: (bool, np.bool_),
  int: (int, np.integer),
  float: (int, float, np.integer, np.floating),
}


class _Unfit(Exception):
  """A value is not of a type."""


def check_request(request: Any) -> None:
  """Checks every field of a dataclass; to be called in `__post_init__`.

  A list becomes the tuple that is due, a path object its text, and a number of
  NumPy's one of Python's.

  Raises:
    ConfigError: a value is not of its field's type.
  """
  hints = _hints(type(request))
  for field in dataclasses.fields(request):
    value = getattr(request, field.name)
    found = admitted(hints[field.name], value, field.name)
    if found is not value:
      object.__setattr__(request, field.name, found)


def checked(function: Function) -> Function:
  """`function`, with a ConfigError for arguments of other types.

  What is not annotated is not checked, nor is a variable number of keywords.
  """
  signature = inspect.signature(function)
  variable = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
  fixed = {n for n, p in signature.parameters.items() if p.kind not in variable}

  @functools.wraps(function)
  def call(*args: Any, **options: Any) -> Any:
    given = signature.bind(*args, **options)
    hints = _hints(function)
    for name in given.arguments.keys() & hints.keys() & fixed:
      given.arguments[name] = admitted(hints[name], given.arguments[name], name)
    return function(*given.args, **given.kwargs)

  return call


def checked_methods(owner: Class) -> Class:
  """A class whose public methods are `checked`, classmethods among them."""
  for name, member in list(vars(owner).items()):
    if name.startswith("_") and name != "__call__":
      continue
    if isinstance(member, classmethod):
      setattr(owner, name, classmethod(checked(member.__func__)))
    elif isinstance(member, property) and member.fset:
      setattr(owner, name, member.setter(checked(member.fset)))
    elif inspect.isfunction(member):
      setattr(owner, name, checked(member))
  return owner


def admitted(kind: Any, value: Any, name: str) -> Any:
  """`value` as the type `kind` has it.

  Args:
    name: of the field or argument, for the message.

  Raises:
    ConfigError: it is not of that type.
  """
  try:
    return _fitted(kind, value)
  except _Unfit:
    text = " ".join(repr(value).split())
    text = text if len(text) <= 80 else f"{text[:77]}..."
    raise ConfigError(
      f"{name} must be {_type_names(kind)}; got {text} ({type(value).__name__})"
    ) from None


@functools.cache
def _hints(owner: Any) -> Mapping[str, Any]:
  return typing.get_type_hints(owner)


def _fitted(kind: Any, value: Any) -> Any:
  """`value` of a type; raises _Unfit."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if kind is Any or isinstance(kind, TypeVar):
    return value
  if kind == DTypeLike:
    return _number_format(value)
  if origin in (typing.Union, types.UnionType):
    return _of_any(args, value)
  if origin is Literal:
    return _needs(value, isinstance(value, str) and value in args)
  if origin in (tuple, Sequence, Collection):
    return _items(origin, args, value)
  if origin is Mapping:
    _needs(value, isinstance(value, Mapping))
    for pair in value.items():
      _items(tuple, args, pair)
    return value
  return _plain(origin or kind, value)


def _of_any(kinds: tuple[Any, ...], value: Any) -> Any:
  if os.PathLike in kinds and isinstance(value, os.PathLike):
    return value  # which stays what it is
  for kind in kinds:
    try:
      return _fitted(kind, value)
    except _Unfit:
      pass
  raise _Unfit


def _items(origin: Any, args: tuple[Any, ...], value: Any) -> Any:
  """A value with all its items fitted; a tuple where the type is one."""
  is_set = origin is Collection and isinstance(value, set | frozenset)
  _needs(value, isinstance(value, list | tuple) or is_set)
  is_any_length = origin is not tuple or args[1:] == (...,)
  kinds = args[:1] * len(value) if is_any_length else args
  _needs(value, len(kinds) == len(value))
  items = [_fitted(kind, item) for kind, item in zip(kinds, value, strict=True)]
  is_same = all(a is b for a, b in zip(items, value, strict=True))
  if is_same and not (origin is tuple and isinstance(value, list)):
    return value
  if isinstance(value, set | frozenset):
    return frozenset(items)
  return tuple(items) if origin is tuple else items


def _plain(kind: Any, value: Any) -> Any:
  """`value` of a class or a protocol."""
  is_bool = isinstance(value, bool | np.bool_)
  if kind is None or kind is types.NoneType:
    return _needs(value, value is None)
  if kind in _NUMBERS:
    is_fit = isinstance(value, _NUMBERS[kind]) and is_bool == (kind is bool)
    _needs(value, is_fit)
    return value.item() if isinstance(value, np.generic) else value
  if kind is str and isinstance(value, os.PathLike):
    return _needs(os.fspath(value), isinstance(os.fspath(value), str))
  if kind is np.ndarray:  # and what NumPy converts, such as jax's
    return _needs(value, hasattr(value, "__array__"))
  if kind is Callable:
    return _needs(value, callable(value))
  if getattr(kind, "_is_protocol", False):
    return _needs(value, _has_members(kind, value))
  return _needs(value, not isinstance(kind, type) or isinstance(value, kind))


def _has_members(kind: type, value: Any) -> bool:
  """Whether a value has the public members of a Protocol."""
  names = [n for n in vars(kind) if n == "__call__" or not n.startswith("_")]
  return all(hasattr(value, name) for name in names)


def _number_format(value: Any) -> Any:
  try:
    return _needs(value, value is not None and bool(jnp.dtype(value)))
  except (TypeError, ValueError):
    raise _Unfit from None


def _needs(value: Any, is_fit: bool) -> Any:
  if not is_fit:
    raise _Unfit
  return value


def _type_names(kind: Any) -> str:
  """A type in an error message, such as "int or None"."""
  if kind == DTypeLike:
    return "a number format such as float32"
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(dict.fromkeys(map(_type_names, args)))
  if origin is Literal:
    return " or ".join(map(repr, args))
  if origin in (tuple, Sequence, Collection):
    if origin is tuple and ... not in args:
      return f"{len(args)} values, each {_type_names(args[0])}"
    return f"a list, each {_type_names(args[0])}"
  if kind is types.NoneType:
    return "None"
  return type_text(origin or kind).replace("builtins.", "")
