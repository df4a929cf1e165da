"""Tables of flags as text: names and a kind on one line, help indented below.

A kind is the type of the value: int, float, text, label (a number or a name),
numbers or integers (separated by commas), pairs (NAME=VALUE), yes (a switch
without a value), choices as a|b, or a placeholder such as FILE. A trailing +
allows the flag to be repeated; two placeholders mean two values; ?V makes the
value optional, with default V.
"""

import argparse
import math
import re
from collections.abc import Iterator
from typing import Any


def numbers(text: str) -> tuple[float, ...]:
  """Numbers separated by commas."""
  try:
    found = tuple(float(word) for word in text.split(",") if word.strip())
  except ValueError:
    found = ()
  if not found or not all(map(math.isfinite, found)):
    raise argparse.ArgumentTypeError(
      f"takes numbers separated by commas, got {text!r}"
    )
  return found


def integers(text: str) -> tuple[int, ...]:
  """Integers separated by commas."""
  try:
    return tuple(int(word) for word in text.split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"takes integers separated by commas, such as 0,0,64,0, got {text!r}"
    ) from None


def pairs(text: str) -> dict[str, str]:
  """NAME=VALUE pairs separated by commas."""
  found = dict(pair.partition("=")[::2] for pair in text.split(","))
  if not all(name and value for name, value in found.items()):
    raise argparse.ArgumentTypeError(f"takes NAME=VALUE, got {text!r}")
  return found


def label(text: str) -> int | str:
  """The number of a class where the text is one, else its name."""
  try:
    return int(text)
  except ValueError:
    return text


TYPES = {"int": int, "float": float, "text": str, "label": label}
TYPES |= {"numbers": numbers, "integers": integers, "pairs": pairs}


def add_flags(parser: argparse.ArgumentParser, title: str, table: str) -> None:
  """Adds the flags of a table as a group; those not given are None."""
  group = parser.add_argument_group(title)
  for names, kind, text in _rows(table):
    group.add_argument(*names, help=text, **_options(kind))


def _rows(table: str) -> Iterator[tuple[list[str], str, str]]:
  for entry in re.split(r"\n(?=-)", table.strip()):
    head, _, text = entry.partition("\n")
    names, _, kind = head.partition(": ")
    yield names.split(), kind, " ".join(text.split()).replace("%", "%%")


def _options(kind: str) -> dict[str, Any]:
  if kind == "yes":
    return {"action": "store_true", "default": None}
  first, *metavars = kind.split()
  name, _, const = first.partition("?")
  options: dict[str, Any] = {}
  if name.endswith("+"):
    name, options["action"] = name[:-1], "append"
  if "|" in name:
    return options | {"choices": tuple(filter(None, name.split("|")))}
  if name in TYPES:
    options["type"] = TYPES[name]
  else:
    options["metavar"] = name
  if const:
    options |= {"nargs": "?", "const": TYPES[name](const)}
  if metavars:
    options["metavar"] = tuple(metavars)
    options |= {"nargs": len(metavars)} if len(metavars) > 1 else {}
  if len(metavars) == 1:
    options["metavar"] = metavars[0]
  return options


def steps_range(text: str) -> tuple[int, int]:
  """FROM:TO as two numbers."""
  first, _, last = text.partition(":")
  if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
    raise argparse.ArgumentTypeError(
      "takes the first and the last step, such as 100:110, got " + repr(text)
    )
  return int(first), int(last)
