"""The numbers that a field of a config admits, written in its annotation.

  batch: Count = 64            # 1 or more
  betas: tuple[Below1, Below1]  # each from 0 to below 1
  clip: Positive | None = None

A limit holds for the number, for every number of a tuple, and not for None.
"""

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

INT_MAX = 2**31 - 1  # of the int32 that steps and sizes become on a device


@dataclasses.dataclass(frozen=True)
class Limit:
  """Numbers from `low` to `high`, both included.

  Attributes:
    is_above: `low` itself is not included.
    is_below: `high` itself is not included.
  """

  low: int | float
  high: int | float = math.inf
  is_above: bool = False
  is_below: bool = False

  def admits(self, number: int | float) -> bool:
    """Whether a number lies within; NaN and infinity do not."""
    if not math.isfinite(number):
      return False
    enough = number > self.low if self.is_above else number >= self.low
    few = number < self.high if self.is_below else number <= self.high
    return enough and few

  def __str__(self) -> str:
    if self.high in (math.inf, INT_MAX):
      return f"above {self.low}" if self.is_above else f"{self.low} or more"
    high = "to below" if self.is_below else "to"
    return f"from {self.low} {high} {self.high}"

  def needs(self, number: int | float) -> str:
    """What is needed in place of a number that is not within."""
    is_large = self.high == INT_MAX < number
    return f"{self.high} or less" if is_large else str(self)


Count = Annotated[int, Limit(1, INT_MAX)]
Natural = Annotated[int, Limit(0, INT_MAX)]
Seed = Annotated[int, Limit(0, 2**32 - 1)]
Positive = Annotated[float, Limit(0, is_above=True)]
NonNegative = Annotated[float, Limit(0)]
Fraction = Annotated[float, Limit(0, 1)]
Below1 = Annotated[float, Limit(0, 1, is_below=True)]


@functools.cache
def limit_of(kind: Any) -> Limit | None:
  """The limit in an annotation, or None."""
  if typing.get_origin(kind) is Annotated:
    found = [x for x in typing.get_args(kind)[1:] if isinstance(x, Limit)]
    if found:
      return found[0]
  return next(filter(None, map(limit_of, type_args(kind))), None)


def type_args(kind: Any) -> tuple[Any, ...]:
  """What a type is built of; of a Callable, its parameters one by one."""
  args = typing.get_args(kind)
  if args and isinstance(args[0], list):
    return (*args[0], *args[1:])
  return args


@functools.cache
def without_limits(kind: Any) -> Any:
  """An annotation as if it were written without limits."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin is Annotated:
    return without_limits(args[0])
  if limit_of(kind) is None:
    return kind
  plain = tuple(map(without_limits, args))
  if origin in (typing.Union, types.UnionType):
    return functools.reduce(operator.or_, plain)
  return origin[plain]


def numbers(value: Any) -> Iterator[int | float]:
  """The numbers in a value and in its tuples."""
  if isinstance(value, tuple):
    for item in value:
      yield from numbers(item)
  elif isinstance(value, int | float) and not isinstance(value, bool):
    yield value


def check_limits(node: Any) -> None:
  """Raises ValueError unless a dataclass's numbers are within their limits.

  Made to be called in `__post_init__`. The message names class and field.
  """
  for field in dataclasses.fields(node):
    limit, value = limit_of(field.type), getattr(node, field.name)
    if limit is None:
      continue
    name = f"{type(node).__name__}.{field.name}"
    kind = without_limits(field.type)
    if not _is_numeric(value, kind):
      raise ValueError(f"{name}: needs {type_text(kind)}, got {value!r}")
    for number in numbers(value):
      if not limit.admits(number):
        raise ValueError(f"{name}: needs {limit.needs(number)}, got {value!r}")


def type_text(kind: Any) -> str:
  """A type as it is written: "int", "float | None"."""
  return kind.__name__ if isinstance(kind, type) else str(kind)


def _is_numeric(value: Any, kind: Any) -> bool:
  """Whether a value is made of numbers, in tuples only where they are due."""
  args = typing.get_args(kind)
  if value is None:
    return types.NoneType in args
  if typing.get_origin(kind) is tuple:
    return isinstance(value, tuple) and all(
      _is_numeric(item, args[0]) for item in value
    )
  return isinstance(value, int | float) and not isinstance(value, bool)
