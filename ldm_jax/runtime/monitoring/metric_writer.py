"""metrics.jsonl, one JSON line per report, and the run's trackers."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.errors import DamagedFile
from ldm_jax.files.atomic_writes import (
  open_append,
  open_update,
  replace_file,
)
from ldm_jax.files.regular_files import open_regular
from ldm_jax.files.strict_json import parse_lines
from ldm_jax.runtime.monitoring.trackers import TensorBoard, Tracker

logger = logging.getLogger(__name__)

VALIDATION = "validation_"  # begins the names of what is measured held out
PERFORMANCE = frozenset((
  "images_per_second", "images_per_second_per_device", "step_seconds_p50",
  "step_seconds_p95", "input_starved", "mfu", "failed_saves",
))  # fmt: skip


class MetricWriter:
  """Writes metrics.jsonl of a run folder and forwards to trackers.

  A resumed run drops the lines beyond the restored step, so that every step is
  reported once. Lines that the disk refuses are kept and written with the next
  one. Trackers get the names that `grouped` gives. A tracker that raises
  OSError is dropped with a warning.

  Args:
    step: the step that is resumed from; 0 for a new run.
    is_writer: false for all processes but the first; they write nothing.
    trackers: see `Tracker`; opened here, closed by `close`.
  """

  def __init__(
    self,
    folder: str,
    step: int = 0,
    is_writer: bool = True,
    trackers: Sequence[Tracker] = (TensorBoard(),),
  ):
    self._path = os.path.join(folder, "metrics.jsonl")
    self._file = None
    self._pending = b""
    self._trackers: list[Tracker] = []
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    self._seconds_before = kept[-1]["seconds"] if kept else 0.0
    self._started = time.monotonic()
    if not is_writer:
      return
    os.makedirs(folder, exist_ok=True)
    with replace_file(self._path, "utf-8") as file:
      file.writelines(json.dumps(line) + "\n" for line in kept)
    self._file = open_append(self._path)
    for tracker in trackers:
      with self._drop_on_os_error(tracker):
        self._trackers.append(tracker.open(folder, step))

  @property
  def seconds(self) -> float:
    """Wall time of the run, summed over all its starts."""
    return self._seconds_before + time.monotonic() - self._started

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends {"step", "seconds", **values}; NaN and infinity become null."""
    if self._file is None:
      return
    numbers = {name: float(value) for name, value in values.items()}
    line = {"step": step, "seconds": round(self.seconds, 3)}
    line |= {n: v if np.isfinite(v) else None for n, v in numbers.items()}
    is_first_refusal = not self._pending
    self._pending += (json.dumps(line) + "\n").encode()
    self._flush(is_first_refusal)
    for tracker in tuple(self._trackers):
      with self._drop_on_os_error(tracker):
        tracker.log(step, {grouped(n): v for n, v in numbers.items()})

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Forwards an image, uint8 [h, w, 3], to the trackers."""
    for tracker in tuple(self._trackers):
      with self._drop_on_os_error(tracker):
        tracker.image(step, name, image)

  def close(self) -> None:
    """Flushes and closes the file and the trackers."""
    if self._file is not None:
      self._flush()
      self._file.close()
    for tracker in tuple(self._trackers):
      with self._drop_on_os_error(tracker):
        tracker.close()

  def _flush(self, is_first_refusal: bool = False) -> None:
    """Writes the pending lines; a full disk may take a part of them only."""
    try:
      while self._pending:
        written = os.write(self._file.fileno(), self._pending)
        self._pending = self._pending[written:]
    except OSError as error:
      if is_first_refusal:
        logger.warning(
          f"{self._path}: {error.strerror}; its lines wait for the next write"
        )

  @contextlib.contextmanager
  def _drop_on_os_error(self, tracker: Tracker) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._trackers = [t for t in self._trackers if t is not tracker]
      logger.warning(
        f"tracker {type(tracker).__name__} is not used any more in this run: "
        f"{error}"
      )


def grouped(name: str) -> str:
  """A metric's name for trackers: train/NAME, val/NAME or perf/NAME."""
  if name in PERFORMANCE:
    return f"perf/{name}"
  if name.startswith(VALIDATION):
    return f"val/{name.removeprefix(VALIDATION)}"
  return f"train/{name}"


def read_metrics(folder: str) -> list[dict[str, Any]]:
  """Every complete line of a run's metrics.jsonl, oldest first.

  Lines that are no metrics are left out with a warning.
  """
  path = os.path.join(folder, "metrics.jsonl")
  return [
    line
    for line in read_json_lines(path, ("step", "seconds"))
    if isinstance(line["seconds"], int | float) and type(line["step"]) is int
  ]


def read_json_lines(
  path: str, needed: Sequence[str], repair: bool = False
) -> list[dict[str, Any]]:
  """The complete lines of a JSONL file; [] if there is no file.

  Other lines are left out with one warning.

  Args:
    needed: keys of every line.
    repair: cut off a last line that a killed process left incomplete, so that
      lines can be appended.
  """
  if not os.path.exists(path):
    return []
  with open_update(path) if repair else open_regular(path) as file:
    text = file.read()
    end = text.rfind(b"\n") + 1
    if repair and end < len(text):
      file.truncate(end)
  problems: list[str] = []
  lines = parse_lines(text[:end], needed, DamagedFile, problems.append)
  if problems:
    logger.warning(
      "%s: %d lines are left out: %s", path, len(problems), problems[0]
    )
  return lines
