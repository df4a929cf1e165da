"""What a run says of itself: one JSON line per report, and TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.runtime.speech import say


class Journal:
  """metrics.jsonl and TensorBoard events of one run folder.

  Opened again after a restart it forgets what lies beyond the step that was
  restored, so every step is told once. Only process 0 keeps one. Lines that a
  disk refuses wait for the next one.
  """

  def __init__(self, folder: str, step: int = 0, is_writer: bool = True):
    self._path = os.path.join(folder, "metrics.jsonl")
    self._file = self._events = None
    self._waiting = b""
    told = [line for line in read(folder) if line["step"] <= step]
    self._earlier = told[-1]["seconds"] if told else 0.0
    self._started = time.monotonic()
    if not is_writer:
      return
    from tensorboardX import SummaryWriter

    os.makedirs(folder, exist_ok=True)
    part = self._path + ".part"
    with open(part, "w") as file:
      file.writelines(json.dumps(line) + "\n" for line in told)
    os.replace(part, self._path)
    self._file = open(self._path, "a")  # noqa: SIM115, open until `close`
    events = os.path.join(folder, "tensorboard")
    purge = step + 1 if told else None
    self._events = SummaryWriter(events, purge_step=purge, write_to_disk=True)

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
    for name, value in numbers.items():
      self._events.add_scalar(name, value, step)

  def _flush(self, is_new: bool = False) -> None:
    """Writes what waits; a disk may take a part, and the rest later."""
    try:
      while self._waiting:
        written = os.write(self._file.fileno(), self._waiting)
        self._waiting = self._waiting[written:]
    except OSError as error:
      if is_new:
        say(f"warning: {self._path}: {error.strerror}; its lines wait")

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """An image [h, w, 3] of bytes for TensorBoard."""
    if self._events is not None:
      self._events.add_image(name, image, step, dataformats="HWC")

  def close(self) -> None:
    """Flushes both."""
    if self._file is not None:
      self._flush()
      self._file.close()
      self._events.close()


def read(folder: str) -> list[dict[str, Any]]:
  """Every whole line of a run's metrics.jsonl, oldest first."""
  path = os.path.join(folder, "metrics.jsonl")
  if not os.path.exists(path):
    return []
  with open(path) as file:
    # A killed process may leave half a line at the end.
    return [json.loads(line) for line in file if line.endswith("\n")]
