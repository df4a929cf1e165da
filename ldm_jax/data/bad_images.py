"""Bad pictures of a source: replaced, counted by kind, within a budget."""

import collections
import dataclasses
import json
import os
import sys
import threading
from typing import Any

from ldm_jax.errors import DataError, ImageError


class BadImageLog:
  """The bad pictures that a process has met, each written down once.

  Args:
    path: a file of JSON lines to add them to, or None.
    fraction: of all examples, how many may be bad.
  """

  def __init__(self, path: str | None = None, fraction: float = 0.0):
    self._path, self._fraction = path, fraction
    self._lock = threading.Lock()
    self._met: dict[int, ImageError] = {}
    self._written = _written(path)

  def __len__(self) -> int:
    return len(self._met)

  def note(self, index: int, count: int, error: ImageError) -> None:
    """Remembers that example `index` of `count` is bad.

    Raises:
      DataError: that is one too many.
    """
    with self._lock:
      if index in self._met:
        return
      self._met[index] = error
      self._write(index, error)
      if len(self._met) > self._fraction * count:
        raise DataError(self._summary(count))

  def _write(self, index: int, error: ImageError) -> None:
    print(f"warning: replaced: {error}", file=sys.stderr, flush=True)
    if self._path is None or error.path in self._written:
      return
    self._written.add(error.path)
    line = {"example": index, "path": error.path, "kind": error.kind}
    try:
      with open(self._path, "a") as file:
        file.write(json.dumps(line | {"detail": error.detail}) + "\n")
    except OSError as refused:
      print(f"warning: {refused}", file=sys.stderr, flush=True)

  def _summary(self, count: int) -> str:
    errors = list(self._met.values())
    kinds = collections.Counter(error.kind for error in errors)
    told = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
    return (
      f"{len(errors)} of {count} pictures are bad ({told}), and "
      f"data.max_bad_fraction is {self._fraction:g}; the first: {errors[0]}; "
      "mend them, take them away, or allow more"
    )


@dataclasses.dataclass(frozen=True)
class SkipBadImages:
  """A source in whose place of a bad picture stands the next good one.

  Which one that is depends on the source alone, so a batch is the same whenever
  it is read.
  """

  source: Any
  ledger: BadImageLog

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    count = len(self.source)
    for step in range(count):
      number = (int(index) + step) % count
      try:
        return self.source[number]
      except ImageError as error:
        self.ledger.note(number, count, error)
    raise DataError(f"none of {count} pictures is good")

  @property
  def sizes(self) -> Any:
    """Those of the source, or None."""
    return getattr(self.source, "sizes", None)


def _written(path: str | None) -> set[str]:
  """The paths that a file of JSON lines names already.

  What a killed process left half written at its end is cut off.
  """
  if path is None or not os.path.exists(path):
    return set()
  with open(path, "r+b") as file:
    told = file.read()
    end = told.rfind(b"\n") + 1
    file.truncate(end)
  return {json.loads(line)["path"] for line in told[:end].splitlines()}
