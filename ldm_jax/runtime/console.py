"""What a program says to its user, once for all processes."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def announced(deed: str) -> Iterator[None]:
  """Says what is slow when it begins, and how long it took."""
  begin = time.monotonic()
  say(f"{deed} ...", end=" ")
  yield
  say(f"{time.monotonic() - begin:.1f} s")


@contextlib.contextmanager
def warned() -> Iterator[None]:
  """What a disk refuses inside is said, and nothing ends for it."""
  try:
    yield
  except OSError as error:
    say(f"warning: {error}")


def say(line: str, end: str = "\n") -> None:
  """Writes to stderr, from process 0."""
  if jax.process_index() == 0:
    print(line, end=end, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
  """For JSON, which knows no infinity: that is a word, others have 7 digits."""
  if isinstance(value, float):
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)
  return value
