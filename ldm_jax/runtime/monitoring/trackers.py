"""Trackers: where a run's metrics and preview images go besides metrics.jsonl.

A user-defined tracker derives from `Tracker` and overrides `log`:

  @dataclasses.dataclass(frozen=True)
  class Print(Tracker):
    def log(self, step, metrics): print(step, metrics)

  Experiment(..., trackers=(TensorBoard(), Print()))
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ldm_jax.runtime.monitoring.hyperparameters import Scalar, hyperparameters


@runtime_checkable
class Tracker(Protocol):
  """Receives the metrics of a run, on process 0 only.

  The instance in an experiment is configuration (a frozen dataclass); what
  `open` returns holds files and connections. An OSError of any method is logged
  once and ends the tracker's use, never the run.
  """

  def open(self, folder: str, step: int) -> "Tracker":
    """The tracker to log to; this one unless it is overridden.

    Args:
      folder: of the run.
      step: the last step already taken: 0, or the step that is resumed from,
        beyond which an earlier process may have logged.
    """
    return self

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """Scalars by name, after `step` updates; NaN and infinity included.

    Names are train/NAME, val/NAME (of held-out examples) or perf/NAME.
    """
    raise NotImplementedError(f"{type(self).__name__} needs a method `log`")

  def image(self, step: int, name: str, array: np.ndarray) -> None:
    """A preview, uint8 [h, w, 3]; ignored unless it is overridden."""

  def close(self) -> None:
    """Flushes; nothing is logged afterwards."""


@dataclasses.dataclass(frozen=True)
class TensorBoard(Tracker):
  """Event files for TensorBoard.

  Attributes:
    subfolder: of the run folder, for the files.
  """

  subfolder: str = "tensorboard"

  def open(self, folder: str, step: int) -> Tracker:
    """A new event file in `subfolder`."""
    files = os.path.join(folder, self.subfolder)
    return TensorBoardFile(files, step + 1, hyperparameters(folder))


class TensorBoardFile(Tracker):
  """One event file, written in the caller's thread.

  tensorboardX's own writer has a thread, whose callers wait for ever once it
  has failed.
  """

  def __init__(
    self, folder: str, step: int, settings: Mapping[str, Scalar] | None = None
  ):
    """Events of `step` and later in earlier files are hidden from now on.

    Args:
      settings: for TensorBoard's page of hyperparameters.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    self._event = event_pb2.Event
    os.makedirs(folder, exist_ok=True)
    is_resumed = bool(os.listdir(folder))
    self._file = EventsWriter(os.path.join(folder, "events"))
    if is_resumed:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(step, session_log=start)
    self._write_settings(settings or {})

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """One scalar summary each."""
    from tensorboardX import summary

    for name, value in metrics.items():
      self._write(step, summary=summary.scalar(name, value))

  def image(self, step: int, name: str, array: np.ndarray) -> None:
    """One image summary."""
    from tensorboardX import summary

    image = summary.image(name, array, dataformats="HWC")
    self._write(step, summary=image)

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()

  def _write_settings(self, settings: Mapping[str, Scalar]) -> None:
    from tensorboardX import summary

    values = {n: "None" if v is None else v for n, v in settings.items()}
    if values:
      for part in summary.hparams(values, {"train/loss": 0, "val/loss": 0}):
        self._write(0, summary=part)

  def _write(self, step: int, **content: Any) -> None:
    event = self._event(step=step, wall_time=time.time(), **content)
    self._file.write_event(event)
    self._file.flush()
