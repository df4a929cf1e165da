"""Runs training steps: compiled once per shape, timed, traced and watched."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from ldm_jax.runtime.log import log_duration
from ldm_jax.runtime.monitoring.step_timer import Profiler, StepTimer
from ldm_jax.runtime.monitoring.watchdog import DEVICES, INPUT, Watchdog

Batch = dict[str, jax.Array]
Step = Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]]


def prefetch(
  put: Callable[[Any], Batch], batches: Iterable[Any], depth: int = 2
) -> Iterator[Batch]:
  """Batches on the devices, transferred `depth` batches ahead."""
  queue: list[Batch] = []
  for batch in batches:
    queue.append(put(batch))
    if len(queue) > depth:
      yield queue.pop(0)
  yield from queue


class StepRunner:
  """Calls a step function, under jax's transfer guard once it is compiled.

  So nothing moves between host and devices but the batch.
  """

  def __init__(
    self,
    step: Step,
    step_timer: StepTimer,
    profiler: Profiler,
    watchdog: Watchdog,
  ):
    self._step, self._step_timer, self._profiler = step, step_timer, profiler
    self._watchdog = watchdog
    self._compiled: set[tuple] = set()

  def watch_input(self, stream: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, timed and watched while they are waited for."""
    batches = self._step_timer.time_input(stream)
    while True:
      self._watchdog.wait_for(INPUT)
      batch = next(batches, None)
      self._watchdog.wait_for(None)
      if batch is None:
        return
      yield batch

  def __call__(self, number: int, state: Any, batch: Batch):
    """(state, metrics) after step `number`, once the previous one is done."""
    shapes = tuple(sorted((name, a.shape) for name, a in batch.items()))
    if shapes not in self._compiled:
      return self._compile_and_run(shapes, state, batch)
    self._watchdog.wait_for(DEVICES)
    with self._profiler.annotate(number), jax.transfer_guard("disallow"):
      state, metrics = self._step(state, batch)
    self._step_timer.dispatched(metrics)
    self._profiler.step_done(number, metrics)
    self._watchdog.step_done()
    return state, metrics

  def _compile_and_run(self, shapes: tuple, state: Any, batch: Batch):
    """The first step of these shapes, which is not timed."""
    self._compiled.add(shapes)
    action = "compiling the training step"
    if len(self._compiled) > 1:
      size = " x ".join(map(str, batch["image"].shape[1:3]))
      action = f"compiling step {len(self._compiled)}, for {size}"
    with log_duration(action):
      state, metrics = jax.block_until_ready(self._step(state, batch))
    self._step_timer.compiled(metrics)
    return state, metrics
