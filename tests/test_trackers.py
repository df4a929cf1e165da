"""Trackers receive the values of metrics.jsonl; their errors end no run."""

import contextlib
import dataclasses
import logging
import time

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from ldm_jax.runtime.monitoring.metric_writer import MetricWriter, read_metrics
from ldm_jax.runtime.monitoring.trackers import TensorBoard, Tracker

RECEIVED = []


@dataclasses.dataclass(frozen=True)
class Listed(Tracker):
  """A tracker of one method, as a user would write it."""

  def log(self, step, metrics):
    RECEIVED.append((step, metrics))


@dataclasses.dataclass(frozen=True)
class Failing(Tracker):
  """Raises OSError in one of its methods, and counts the calls."""

  method: str
  calls: list = dataclasses.field(default_factory=list)

  def _called(self, name):
    self.calls.append(name)
    if name == self.method:
      raise OSError("connection lost")

  def open(self, folder, step):
    self._called("open")
    return self

  def log(self, step, metrics):
    self._called("log")

  def image(self, step, name, array):
    self._called("image")

  def close(self):
    self._called("close")


def test_a_tracker_of_one_method_receives_every_report(tmp_path):
  RECEIVED.clear()
  trackers = (Listed(), TensorBoard())
  writer = MetricWriter(str(tmp_path), trackers=trackers)
  with contextlib.closing(writer):
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": float("inf")})
    writer.image(2, "samples", np.zeros((4, 4, 3), np.uint8))
  assert [(1, {"loss": 0.5}), (2, {"loss": float("inf")})] == RECEIVED
  assert [line["loss"] for line in read_metrics(str(tmp_path))] == [0.5, None]


def test_only_the_first_process_opens_trackers(tmp_path):
  tracker = Failing("never")
  writer = MetricWriter(str(tmp_path), is_writer=False, trackers=(tracker,))
  writer.write(1, {"loss": 1.0})
  writer.close()
  assert tracker.calls == [] and not list(tmp_path.iterdir())


def test_a_tracker_that_raises_os_error_is_dropped_and_the_run_continues(
  tmp_path, caplog
):
  for method, calls in (
    ("open", ["open"]),
    ("log", ["open", "log"]),
    ("image", ["open", "log", "image"]),
    ("close", ["open", "log", "image", "log", "close"]),
  ):
    caplog.clear()
    folder, tracker = str(tmp_path / method), Failing(method)
    writer = MetricWriter(folder, trackers=(tracker, TensorBoard()))
    writer.write(1, {"loss": 1.0})
    writer.image(1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert tracker.calls == calls
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tracker Failing is not used any more" in record.message
    assert [line["loss"] for line in read_metrics(folder)] == [1.0, 2.0]


def test_tensorboard_hides_what_lies_beyond_a_resumed_step(tmp_path):
  for begin, losses in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (1, {2: 5.0})):
    writer = MetricWriter(str(tmp_path), begin)
    for step, loss in losses.items():
      writer.write(step, {"loss": loss})
    writer.image(begin + 1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    time.sleep(1.1)  # event files are named by the second
  events = EventAccumulator(str(tmp_path / "tensorboard"))
  events.Reload()
  found = [(event.step, event.value) for event in events.Scalars("loss")]
  np.testing.assert_allclose(found, [(1, 0.1), (2, 5.0)], rtol=1e-6)
  assert [event.step for event in events.Images("samples")][-1] == 2
