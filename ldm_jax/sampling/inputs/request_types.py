"""The types of a request's fields, where its values come from JSON."""

import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.fields import checks
from ldm_jax.sampling.request import GenerationRequest

_PLAIN = (str, int, float, bool, types.NoneType, Any, ...)


def check_json_types(values: Mapping[str, Any]) -> None:
  """Raises ConfigError if a field has a value that its type does not admit.

  Args:
    values: JSON values by field; tuples for lists.
  """
  kinds = _kinds()
  for name, value in values.items():
    kind = kinds[name]
    if not (value is None and types.NoneType in typing.get_args(kind)):
      checks.validated(kind, value, name, value)
    if isinstance(value, int) and abs(value) >= 2**64:
      raise ConfigError(f"{name} must have at most 64 bits, got {value}")


@functools.cache
def _kinds() -> Mapping[str, Any]:
  hints = typing.get_type_hints(GenerationRequest)
  return {name: _json_kind(kind) for name, kind in hints.items()}


def _json_kind(kind: Any) -> Any:
  """A type without those parts that no JSON value has; None if all are."""
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if kind in _PLAIN or origin is typing.Literal:
    return kind
  kept = tuple(k for k in map(_json_kind, parts) if k is not None)
  if not kept:
    return None
  if origin in (typing.Union, types.UnionType):
    return typing.Union[kept]  # noqa: UP007, of a tuple
  return origin[kept] if origin in (tuple, Sequence, Mapping) else None
