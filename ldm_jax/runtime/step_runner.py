"""One step after another: compiled once per shape, timed, traced, watched."""

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
  """Batches on the devices, `depth` of them before they are asked for."""
  waiting: list[Batch] = []
  for batch in batches:
    waiting.append(put(batch))
    if len(waiting) > depth:
      yield waiting.pop(0)
  yield from waiting


class StepRunner:
  """Takes steps; of one that is compiled, nothing moves between host and
  devices but what was put into its batch."""

  def __init__(
    self, step: Step, pace: StepTimer, profile: Profiler, watchdog: Watchdog
  ):
    self._step, self._pace, self._profile = step, pace, profile
    self._watchdog = watchdog
    self._compiled: set[tuple] = set()

  def watch_input(self, stream: Iterator[Batch]) -> Iterator[Batch]:
    """The same stream, watched and timed."""
    batches = self._pace.time_input(stream)
    while True:
      self._watchdog.wait_for(INPUT)
      batch = next(batches, None)
      self._watchdog.wait_for(None)
      if batch is None:
        return
      yield batch

  def __call__(self, number: int, state: Any, batch: Batch):
    """(state, metrics) after step `number`, once the one before it is done."""
    shapes = tuple(sorted((name, a.shape) for name, a in batch.items()))
    if shapes not in self._compiled:
      return self._first(shapes, state, batch)
    self._watchdog.wait_for(DEVICES)
    with self._profile.annotate(number), jax.transfer_guard("disallow"):
      state, metrics = self._step(state, batch)
    self._pace.dispatched(metrics)
    self._profile.step_done(number, metrics)
    self._watchdog.step_done()
    return state, metrics

  def _first(self, shapes: tuple, state: Any, batch: Batch):
    """A step that has to be compiled; no time is counted."""
    self._compiled.add(shapes)
    deed = "compiling the training step"
    if len(self._compiled) > 1:
      size = " x ".join(map(str, batch["image"].shape[1:3]))
      deed = f"compiling step {len(self._compiled)}, for {size}"
    with log_duration(deed):
      state, metrics = jax.block_until_ready(self._step(state, batch))
    self._pace.compiled(metrics)
    return state, metrics
