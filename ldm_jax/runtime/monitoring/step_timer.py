"""What a run's steps cost: told as it goes, without making a device wait."""

import concurrent.futures
import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from ldm_jax.errors import NonFinite
from ldm_jax.runtime.monitoring import flops
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter
from ldm_jax.runtime.skip_updates import HEALTH

Item = TypeVar("Item")


class StepTimer:
  """Times steps one behind: while step n runs, step n - 1 is waited for.

  So the host never runs far ahead, and the devices never wait for it. A thread
  sees when a step is done.

  Args:
    rows: examples of one step.
    work: operations of one step, over all devices; see `flops.count`.
  """

  def __init__(self, batch_size: int, flops_per_step: int = 0):
    self._batch_size, self._flops = batch_size, flops_per_step
    self._witness = concurrent.futures.ThreadPoolExecutor(1)
    self._running: concurrent.futures.Future | None = None
    self._begun = self._done = self._fed = time.perf_counter()
    self._seconds: list[float] = []
    self._hungry = 0.0
    self._last: dict[str, float] = {}

  def time_input(self, stream: Iterator[Item]) -> Iterator[Item]:
    """The same; how long devices have nothing to do meanwhile is counted."""
    while True:
      asked = time.perf_counter()
      try:
        item = next(stream)
      except StopIteration:
        return
      self._fed = time.perf_counter()
      if self._running is not None and self._running.done():
        idle = max(asked, self._running.result())
        self._hungry += max(0.0, self._fed - idle)
      yield item

  def dispatched(self, result: Any) -> None:
    """A step was dispatched; returns once the one before it is done."""
    before, begun = self._running, self._begun
    self._running = self._witness.submit(_done_at, result)
    self._begun = self._fed
    if before is not None:
      done = before.result()
      self._seconds.append(done - max(self._done, begun))
      self._done = done

  def compiled(self, result: Any) -> None:
    """A step was waited for, of which no time is counted: it was compiled."""
    self._running = self._witness.submit(_done_at, result)
    self._done = self._begun = self._fed = self._running.result()

  def close(self) -> None:
    """Lets the thread go."""
    self._witness.shutdown()

  def metrics(self) -> dict[str, float]:
    """Speed, percentiles of a step, and hunger since it was last asked.

    The same again if no step was done since; nothing if none ever was.
    """
    if self._seconds:
      self._last = self._measured(np.asarray(self._seconds))
      self._seconds, self._hungry = [], 0.0
    return self._last

  def _measured(self, seconds: np.ndarray) -> dict[str, float]:
    devices, total = jax.device_count(), float(seconds.sum())
    speed = self._batch_size * len(seconds) / (total + self._hungry)
    p50, p95 = np.percentile(seconds, [50, 95])
    told = {
      "images_per_second": speed,
      "images_per_second_per_device": speed / devices,
      "step_seconds_p50": float(p50),
      "step_seconds_p95": float(p95),
      # Of the time that steps and the lack of them took.
      "input_starved": self._hungry / (self._hungry + total),
    }
    peak = flops.peak(jax.devices()[0].device_kind)
    if peak and self._flops:
      told["mfu"] = self._flops / self._batch_size * speed / (peak * devices)
    return told


class Profiler:
  """Traces the steps from the first to the last for TensorBoard, or Perfetto.

  Args:
    steps: the first and the last; none if the last is 0.
  """

  def __init__(self, folder: str, steps: tuple[int, int]):
    self._folder, self._steps, self._is_on = folder, steps, False

  def annotate(self, step: int) -> contextlib.AbstractContextManager:
    """Names a step in the trace, which begins with the first one."""
    first, last = self._steps
    if not self._is_on and first <= step <= last:
      jax.profiler.start_trace(self._folder)
      self._is_on = True
    if not self._is_on:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def step_done(self, step: int, result: Any) -> None:
    """Writes the trace once the last step is done."""
    if self._is_on and step >= self._steps[1]:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Writes what there is."""
    if self._is_on:
      jax.profiler.stop_trace()
      self._is_on = False


def _done_at(result: Any) -> float:
  """When it is done, by the clock."""
  jax.block_until_ready(result)
  return time.perf_counter()


class ProgressReporter:
  """Tells of a step once the next one is under way, so none has to wait."""

  def __init__(
    self, journal: MetricWriter, pace: StepTimer, begin: int, steps: int
  ):
    from tqdm import tqdm

    self._journal, self._pace = journal, pace
    self._pending: tuple[int, Any] | None = None
    self._told = begin
    self._bar = tqdm(
      total=steps,
      initial=begin,
      disable=jax.process_index() > 0,
      mininterval=0.5 if sys.stderr.isatty() else 30,
    )

  def defer(self, step: int, metrics: Any) -> None:
    """Keeps the metrics of `step` for the next `flush`."""
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Writes what was kept.

    Raises:
      NonFinite: if it is not a number, and its update was not passed over.
    """
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in metrics.items()}
    health = {name: values.pop(name, 0) for name in HEALTH}
    pace = self._pace.metrics()
    self._journal.write(step, values | pace)
    speed = pace.get("images_per_second")
    self._bar.set_postfix_str(
      f"loss {values['loss']:.4g}"
      + (f", {speed:.0f} images/s" if speed else ""),
      refresh=False,
    )
    self._bar.update(step - self._told)
    self._told = step
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad and not health["in_row"]:
      raise NonFinite(
        f"{' and '.join(bad)} at step {step} is not finite; the last "
        "checkpoint is from before; try a lower learning rate or clip"
      )

  def close(self) -> None:
    """Ends the line of the progress bar."""
    self._pace.close()
    self._bar.close()
