"""Bad images of a data set: replaced, logged, and limited to a fraction."""

import collections
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.label_checks import check_example, path_of
from ldm_jax.data.protocols import Source
from ldm_jax.errors import DataError, ImageError
from ldm_jax.files.atomic_writes import open_append, open_update
from ldm_jax.files.strict_json import parse_lines

logger = logging.getLogger(__name__)


class BadImageLog:
  """The bad images that a process has found, each logged once.

  Args:
    path: a file of JSON lines they are appended to, or None.
    fraction: of all examples, how many may be bad; in [0, 1].
  """

  def __init__(self, path: str | None = None, fraction: float = 0.0):
    self._path, self._fraction = path, fraction
    self._lock = threading.Lock()
    self._errors: dict[int, ImageError] = {}
    self._written = _written(path)

  def __len__(self) -> int:
    return len(self._errors)

  def add(self, index: int, count: int, error: ImageError) -> None:
    """Records that example `index` of `count` is bad.

    Raises:
      DataError: more than the allowed fraction is bad.
    """
    with self._lock:
      if index in self._errors:
        return
      self._errors[index] = error
      self._write(index, error)
      if len(self._errors) > self._fraction * count:
        raise DataError(self._summary(count))

  def _write(self, index: int, error: ImageError) -> None:
    logger.warning("replaced: %s", error)
    if self._path is None or error.path in self._written:
      return
    self._written.add(error.path)
    line = {"example": index, "path": error.path, "kind": error.kind}
    try:
      text = json.dumps(line | {"detail": error.detail}) + "\n"
      with open_append(self._path) as file:
        file.write(text.encode())
    except OSError as write_error:
      logger.warning("%s", write_error)

  def _summary(self, count: int) -> str:
    errors = list(self._errors.values())
    kinds = collections.Counter(error.kind for error in errors)
    counts = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
    return (
      f"{len(errors)} of {count} images are bad ({counts}), and "
      f"data.max_bad_fraction is {self._fraction:g}; the first: {errors[0]}; "
      "repair them, remove them, or allow more"
    )


@dataclasses.dataclass(frozen=True)
class SkipBadImages:
  """A source that replaces a bad image by the next good one.

  Which one that is depends on the source alone, so a batch is the same however
  often it is read.

  Attributes:
    source: raises ImageError where an image is bad.
    log: records them, and raises DataError if there are too many.
    classes: {array: number of classes}; an example with a class outside is as
      bad as one whose image is. See `label_checks.check_example`.
  """

  source: Source
  log: BadImageLog
  classes: Mapping[str, int] = dataclasses.field(
    default_factory=dict, hash=False
  )

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    count = len(self.source)
    for step in range(count):
      number = (int(index) + step) % count
      try:
        item = self.source[number]
        if self.classes:
          check_example(item, self.classes, path_of(self.source, number))
        return item
      except ImageError as error:
        self.log.add(number, count, error)
    raise DataError(f"none of {count} images is good")

  @property
  def sizes(self) -> Any:
    """Those of the source, or None."""
    return getattr(self.source, "sizes", None)


def _written(path: str | None) -> set[str]:
  """The image paths that a file of JSON lines lists already.

  An incomplete last line, left by a killed process, is cut off.
  """
  if path is None or not os.path.exists(path):
    return set()
  with open_update(path) as file:
    content = file.read()
    end = content.rfind(b"\n") + 1
    file.truncate(end)
  problems: list[str] = []
  lines = parse_lines(content[:end], ("path",), DataError, problems.append)
  if problems:
    logger.warning("%s: %d foreign lines: %s", path, len(problems), problems[0])
  return {line["path"] for line in lines if isinstance(line["path"], str)}
