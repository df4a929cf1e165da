"""JSON that is read: of UTF-8, each name once, of bounded depth and numbers.

Python's reader accepts more: NaN, Infinity, numbers that overflow to infinity,
names that are repeated, halves of surrogate pairs, and any depth up to the
stack's.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from ldm_jax.errors import LdmJaxError
from ldm_jax.files.regular_files import open_regular

MAX_BYTES = 2**27
MAX_DEPTH = 64
MAX_DIGITS = 300  # of a whole number; more exceed the range of floats

Error = type[LdmJaxError]


def parse_json(
  text: str | bytes, error: Error, *, has_constants: bool = False
) -> Any:
  """The value of a JSON text.

  Args:
    error: the exception to raise.
    has_constants: accept NaN and Infinity, as Python and diffusers write them.

  Raises:
    error: it is not UTF-8 or not JSON, repeats a name, is nested more than
      MAX_DEPTH deep, or holds a number or a character that cannot be stored.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode("utf-8-sig")
    value = json.loads(
      text,
      object_pairs_hook=_unique,
      parse_constant=float if has_constants else _no_constant,
      parse_float=float if has_constants else _finite,
      parse_int=_whole,
    )
  except RecursionError:
    raise error(
      f"its JSON is malformed (nested more than {MAX_DEPTH} deep)"
    ) from None
  except ValueError as found:
    raise error(f"its JSON is malformed ({found})") from found
  _check(value, error)
  return value


def parse_object(
  text: str | bytes, name: str, error: Error, *, has_constants: bool = False
) -> dict[str, Any]:
  """The JSON object of a text; raises as `parse_json`, or for another kind.

  Args:
    name: of the file in error messages.
  """
  try:
    value = parse_json(text, error, has_constants=has_constants)
  except error as found:
    raise error(f"{name}: {found}; expected a JSON object") from found
  if not isinstance(value, dict):
    raise error(f"{name} holds {kind(value)}; expected a JSON object")
  return value


def read_object(
  path: str | os.PathLike, error: Error, *, has_constants: bool = False
) -> dict[str, Any]:
  """The JSON object of a file; raises as `parse_object`.

  Raises:
    FileNotFoundError: there is no such file.
  """
  name = os.fspath(path)
  try:
    with open_regular(path) as file:
      text = file.read(MAX_BYTES + 1)
  except FileNotFoundError:
    raise
  except OSError as found:
    reason = found.strerror or found
    raise error(f"{name} cannot be read: {reason}") from found
  if len(text) > MAX_BYTES:
    raise error(f"{name} has more than {MAX_BYTES} bytes, the most for JSON")
  return parse_object(text, name, error, has_constants=has_constants)


def parse_lines(
  text: bytes,
  needed: Sequence[str],
  error: Error,
  foreign: Callable[[str], Any],
) -> list[dict[str, Any]]:
  """The objects of JSON lines that have certain keys.

  Args:
    needed: these keys.
    foreign: called with what is wrong with every other line.
  """
  found = []
  for number, line in enumerate(text.split(b"\n"), 1):
    if not line.strip():
      continue
    try:
      entry = parse_object(line, f"line {number}", error)
    except error as problem:
      foreign(str(problem))
      continue
    missing = [key for key in needed if key not in entry]
    if missing:
      foreign(f"line {number} has no {missing[0]!r}")
    else:
      found.append(entry)
  return found


def kind(value: Any) -> str:
  """What JSON calls a value, with an article."""
  names = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
  }
  return names[type(value)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(n for n, _ in pairs if n in seen or seen.add(n))
    raise ValueError(f"{twice[:200]!r} is twice in its JSON")
  return found


def _no_constant(text: str) -> float:
  raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"the number {text[:40]} is too large")
  return value


def _whole(text: str) -> int:
  if len(text) > MAX_DIGITS:
    raise ValueError(f"a whole number of {len(text)} digits")
  return int(text)


def _check(value: Any, error: Error) -> None:
  """Refuses deep nesting, and halves of surrogate pairs; level by level."""
  level = [value]
  for _ in range(MAX_DEPTH):
    below: list[Any] = []
    for item in level:
      if isinstance(item, dict):
        below.extend(item)
        below.extend(item.values())
      elif isinstance(item, list):
        below.extend(item)
      elif isinstance(item, str) and not item.isascii():
        _check_text(item, error)
    if not below:
      return
    level = below
  raise error(f"its JSON is malformed (nested more than {MAX_DEPTH} deep)")


def _check_text(text: str, error: Error) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as found:
    half = f"half of a surrogate pair, {text[found.start]!r}"
    raise error(f"its JSON is malformed (a string with {half})") from found
