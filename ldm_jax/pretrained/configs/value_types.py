"""The types of the values of a config.json: a wrong one is an error by name."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import INT_MAX

# Numbers of layers: a larger one would be built for hours before it fails.
_LAYERS = (
  *("num_hidden_layers", "encoder_layers", "layers_per_block"),
  "transformer_layers_per_block",
)
MOST_LAYERS = 1000
# What a value may be, by the type of the default; those of lists too.
_NEEDED = {
  bool: "true or false",
  int: f"a whole number, at most {INT_MAX}",
  float: "a finite number",
  str: "a string",
}


def check_value(kind: str, key: str, value: Any, default: Any) -> None:
  """Raises ConfigError for a value that is not of its key's type.

  null is of any type, as is a list, each of whose values is of the type.
  """
  listed = value if isinstance(value, tuple) else (value,)
  first = default[0] if isinstance(default, tuple) and default else default
  needed = str if isinstance(default, tuple) and not default else type(first)
  for each in listed:
    if isinstance(each, list | tuple) and key == "transformer_layers_per_block":
      check_value(kind, key, tuple(each), default)
    elif not _is_of(each, needed):
      named = _NEEDED.get(needed, "a number, a string or a list of them")
      raise _refused(kind, key, value, named)
    elif key in _LAYERS and isinstance(each, int) and each > MOST_LAYERS:
      raise _refused(kind, key, value, f"at most {MOST_LAYERS} layers")


def _is_of(value: Any, needed: type) -> bool:
  if value is None:
    return True
  is_number = type(value) in (int, float)
  is_finite = is_number and abs(value) <= INT_MAX and math.isfinite(value)
  if is_number and not is_finite:
    return False
  if needed is int and is_number:  # diffusers' own files have 32.0 at times
    return value == int(value)
  if needed is float:
    return is_number
  if needed is type(None):
    return is_number or isinstance(value, str | bool)
  # A flag may be given as a kind, and a kind left out as false.
  return type(value) is needed or value is False


def _refused(kind: str, key: str, value: Any, needed: str) -> ConfigError:
  text = repr(value)
  text = text if len(text) <= 60 else f"{text[:60]}..."
  return ConfigError(f"{kind}: {key}={text} is not supported; needed: {needed}")


@contextlib.contextmanager
def malformed_values(file: str) -> Iterator[None]:
  """Raises ConfigError for values of types that do not go together."""
  try:
    yield
  except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
    first = str(error).splitlines() or [type(error).__name__]
    raise ConfigError(
      f"{file} has values of wrong types: {first[0]}"
    ) from error
