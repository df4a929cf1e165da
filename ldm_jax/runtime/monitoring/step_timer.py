"""Speed, utilisation, profiles and progress of training steps.

Nothing here makes a device wait: step n - 1 is measured and reported while step
n runs.
"""

import concurrent.futures
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from ldm_jax.errors import NonFinite
from ldm_jax.runtime.monitoring import flops
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter
from ldm_jax.runtime.monitoring.progress import Progress
from ldm_jax.runtime.skip_updates import HEALTH

Item = TypeVar("Item")


class StepTimer:
  """Times steps one behind: while step n runs, step n - 1 is waited for.

  So the host is never more than one step ahead, and the devices never wait for
  it. A thread waits for each step's results and notes the time.

  Args:
    batch_size: examples of one step, over all devices.
    flops_per_step: over all devices, as `flops.count`; 0 if unknown.
  """

  def __init__(self, batch_size: int, flops_per_step: int = 0):
    self._batch_size, self._flops = batch_size, flops_per_step
    self._executor = concurrent.futures.ThreadPoolExecutor(1)
    self._running: concurrent.futures.Future | None = None
    # Of the last step: its start, its end, and when its input was ready.
    self._start = self._end = self._input_ready = time.perf_counter()
    self._seconds: list[float] = []
    self._starved = 0.0
    self._last: dict[str, float] = {}

  def time_input(self, stream: Iterator[Item]) -> Iterator[Item]:
    """The same items; counts how long devices are idle until they come."""
    while True:
      requested = time.perf_counter()
      try:
        item = next(stream)
      except StopIteration:
        return
      self._input_ready = time.perf_counter()
      if self._running is not None and self._running.done():
        idle_since = max(requested, self._running.result())
        self._starved += max(0.0, self._input_ready - idle_since)
      yield item

  def dispatched(self, result: Any) -> None:
    """A step was dispatched; returns once the previous one is done.

    Args:
      result: arrays that the step computes.
    """
    previous, start = self._running, self._start
    self._running = self._executor.submit(_time_when_done, result)
    self._start = self._input_ready
    if previous is not None:
      end = previous.result()
      self._seconds.append(end - max(self._end, start))
      self._end = end

  def compiled(self, result: Any) -> None:
    """A step was compiled and waited for; its time does not count."""
    self._running = self._executor.submit(_time_when_done, result)
    self._end = self._start = self._input_ready = self._running.result()

  def close(self) -> None:
    """Ends the thread."""
    self._executor.shutdown()

  def metrics(self) -> dict[str, float]:
    """Speed, step time and input starvation since the last call.

    The same values again if no step was done since; {} before the first step.
    """
    if self._seconds:
      self._last = self._measure(np.asarray(self._seconds))
      self._seconds, self._starved = [], 0.0
    return self._last

  def _measure(self, seconds: np.ndarray) -> dict[str, float]:
    devices, total = jax.device_count(), float(seconds.sum())
    speed = self._batch_size * len(seconds) / (total + self._starved)
    p50, p95 = np.percentile(seconds, [50, 95])
    metrics = {
      "images_per_second": speed,
      "images_per_second_per_device": speed / devices,
      "step_seconds_p50": float(p50),
      "step_seconds_p95": float(p95),
      # The fraction of the time in which devices waited for input.
      "input_starved": self._starved / (self._starved + total),
    }
    peak = flops.peak(jax.devices()[0].device_kind)
    if peak and self._flops:
      # Model FLOPs utilisation (Chowdhery et al. 2022, appendix B).
      metrics["mfu"] = self._flops / self._batch_size * speed / (peak * devices)
    return metrics


def _time_when_done(result: Any) -> float:
  jax.block_until_ready(result)
  return time.perf_counter()


class Profiler:
  """Traces a range of steps, for TensorBoard's profiler or Perfetto.

  Args:
    folder: for the trace.
    steps: the first and the last; (0, 0) traces nothing.
  """

  def __init__(self, folder: str, steps: tuple[int, int]):
    self._folder, self._steps, self._is_tracing = folder, steps, False

  def annotate(self, step: int) -> contextlib.AbstractContextManager:
    """A context that names a step in the trace; starts it at the first step."""
    first, last = self._steps
    if not self._is_tracing and first <= step <= last:
      jax.profiler.start_trace(self._folder)
      self._is_tracing = True
    if not self._is_tracing:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def step_done(self, step: int, result: Any) -> None:
    """Writes the trace once the last step's `result` is computed."""
    if self._is_tracing and step >= self._steps[1]:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Writes what has been traced so far."""
    if self._is_tracing:
      jax.profiler.stop_trace()
      self._is_tracing = False


class ProgressReporter:
  """Writes a step's metrics and moves the bar while the next step runs.

  Args:
    begin: steps taken already.
    steps: in all.
  """

  def __init__(
    self,
    metric_writer: MetricWriter,
    step_timer: StepTimer,
    begin: int,
    steps: int,
  ):
    self._metric_writer, self._step_timer = metric_writer, step_timer
    self._pending: tuple[int, Any] | None = None
    self._reported = begin
    is_first = jax.process_index() == 0
    self._bar = Progress("training", steps, "steps", begin, is_first)

  def defer(self, step: int, metrics: Any) -> None:
    """Keeps the metrics of `step` for the next `flush`."""
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Writes what `defer` has kept; waits until the devices computed it.

    Raises:
      NonFinite: a metric is not finite, and its update was not skipped.
    """
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in metrics.items()}
    health = {name: values.pop(name, 0) for name in HEALTH}
    timing = self._step_timer.metrics()
    self._metric_writer.write(step, values | timing)
    speed = timing.get("images_per_second")
    text = f"loss {values['loss']:.4g}"
    text += f", {speed:.0f} images/s" if speed else ""
    self._bar.update(step - self._reported, text)
    self._reported = step
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad and not health["in_row"]:
      raise NonFinite(
        f"{' and '.join(bad)} at step {step} is not finite; the last "
        "checkpoint is from before; try a lower learning rate or clip"
      )

  def close(self) -> None:
    """Ends the timer's thread and the line of the bar."""
    self._step_timer.close()
    self._bar.close()
