"""What a run says of itself: one JSON line per report, and TensorBoard."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


class MetricWriter:
  """metrics.jsonl and TensorBoard events of one run folder.

  Opened again after a restart it forgets what lies beyond the step that was
  restored, so every step is told once. Only process 0 keeps one. Lines that a
  disk refuses wait for the next one.
  """

  def __init__(self, folder: str, step: int = 0, is_writer: bool = True):
    self._path = os.path.join(folder, "metrics.jsonl")
    self._file = self._events = None
    self._waiting = b""
    told = [line for line in read_metrics(folder) if line["step"] <= step]
    self._earlier = told[-1]["seconds"] if told else 0.0
    self._started = time.monotonic()
    if not is_writer:
      return
    os.makedirs(folder, exist_ok=True)
    part = self._path + ".part"
    with open(part, "w") as file:
      file.writelines(json.dumps(line) + "\n" for line in told)
    os.replace(part, self._path)
    self._file = open(self._path, "a")  # noqa: SIM115, open until `close`
    self._events = Events(os.path.join(folder, "tensorboard"), step + 1)

  @property
  def seconds(self) -> float:
    """Wall time the run has taken, over all its starts."""
    return self._earlier + time.monotonic() - self._started

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends {"step", "seconds", **values}; not-a-number becomes null."""
    if self._file is None:
      return
    numbers = {name: float(value) for name, value in values.items()}
    line = {"step": step, "seconds": round(self.seconds, 3)}
    line |= {n: v if np.isfinite(v) else None for n, v in numbers.items()}
    is_new = not self._waiting
    self._waiting += (json.dumps(line) + "\n").encode()
    self._flush(is_new)
    self._events.write(step, numbers)

  def _flush(self, is_new: bool = False) -> None:
    """Writes what waits; a disk may take a part, and the rest later."""
    try:
      while self._waiting:
        written = os.write(self._file.fileno(), self._waiting)
        self._waiting = self._waiting[written:]
    except OSError as error:
      if is_new:
        logger.warning(f"{self._path}: {error.strerror}; its lines wait")

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """An image [h, w, 3] of bytes for TensorBoard."""
    if self._events is not None:
      self._events.write(step, {name: image})

  def close(self) -> None:
    """Flushes both."""
    if self._file is not None:
      self._flush()
      self._file.close()
      self._events.close()


class Events:
  """One file for TensorBoard, given up once a disk refuses it.

  Written in the caller's thread: a writer of its own, as tensorboardX has one,
  leaves its callers waiting for ever when it fails.
  """

  def __init__(self, folder: str, step: int):
    """Opened again, it hides what an earlier file told of `step` and later."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    self._new, self._path = event_pb2.Event, os.path.join(folder, "events")
    os.makedirs(folder, exist_ok=True)
    is_again = bool(os.listdir(folder))
    self._file = EventsWriter(self._path)
    if is_again:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._put(step, session_log=start)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Numbers and images [h, w, 3] of bytes, by name."""
    from tensorboardX import summary

    for name, value in values.items():
      told = (
        summary.image(name, value, dataformats="HWC")
        if isinstance(value, np.ndarray)
        else summary.scalar(name, value)
      )
      self._put(step, summary=told)

  def close(self) -> None:
    """Flushes what there is."""
    if self._file is not None:
      with self._given_up():
        self._file.close()

  def _put(self, step: int, **what: Any) -> None:
    if self._file is None:
      return
    with self._given_up():
      event = self._new(step=step, wall_time=time.time(), **what)
      self._file.write_event(event)
      self._file.flush()

  @contextlib.contextmanager
  def _given_up(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._file = None
      logger.warning(f"{self._path}: {error.strerror}; no more for TensorBoard")


def read_metrics(folder: str) -> list[dict[str, Any]]:
  """Every whole line of a run's metrics.jsonl, oldest first."""
  return read_json_lines(os.path.join(folder, "metrics.jsonl"))


def read_json_lines(path: str, repair: bool = False) -> list[dict[str, Any]]:
  """Of a file of JSON lines, without what a killed process left half written.

  Args:
    repair: whether that half is cut off, so that lines can be added.
  """
  if not os.path.exists(path):
    return []
  with open(path, "r+b" if repair else "rb") as file:
    told = file.read()
    end = told.rfind(b"\n") + 1
    if repair and end < len(told):
      file.truncate(end)
  return [json.loads(line) for line in told[:end].splitlines()]
