"""How it runs: for each batch, step; sometimes log, preview, measure, save."""

import contextlib
import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax.errors import NonFinite
from ldm_jax.pixels import to_uint8
from ldm_jax.runtime import image_files
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.checkpoint_saver import (
  CheckpointSaver,
  check_disk_space,
)
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices import memory, processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.log import warn_on_os_error
from ldm_jax.runtime.monitoring import flops
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter
from ldm_jax.runtime.monitoring.step_timer import (
  Profiler,
  ProgressReporter,
  StepTimer,
)
from ldm_jax.runtime.monitoring.watchdog import DEVICES, DISK, INPUT, Watchdog
from ldm_jax.runtime.signals import InterruptHandler, SharedInterrupt, exit_code
from ldm_jax.runtime.skip_updates import NonFiniteMonitor
from ldm_jax.runtime.step_runner import StepRunner, prefetch
from ldm_jax.training.compiled_steps import Batch, CompiledTask, Task

logger = logging.getLogger(__name__)

Stream = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Steps a task up to a number of updates, on any mesh, from any step.

  Attributes:
    folder: of the run.
    every: steps between lines of the journal.
    previews_every: steps between previews; 0 shows none.
    captions: to write under previewed samples.
    profile: steps to trace, the first and the last, or None.
    start: parameters to begin from instead of fresh ones.
    examples: from a step to the numbers of its examples, to name those of an
      update that is passed over.
    hang, abort: of the `Watchdog`.
  """

  task: Task
  sharding: Sharding
  folder: str
  steps: int
  seed: int = 0
  keeping: CheckpointPolicy = CheckpointPolicy()
  every: int = 50
  previews_every: int = 1000
  captions: Sequence[str] = ()
  profile: tuple[int, int] | None = None
  start: Any = None
  examples: Callable[[int], Sequence[int]] = lambda step: ()
  hang: float = 30.0
  abort: float | None = None

  def run(
    self,
    frozen: Any,
    batches: Callable[[int], Stream],
    held_out: Batch,
    shown: Batch,
  ) -> int:
    """Trains, or goes on training; returns the exit code.

    Args:
      batches: from a step to this process's batches from there on.
      held_out: measured at every checkpoint.
      shown: previewed.

    Raises:
      NonFinite: if a loss or a parameter is, or too many gradients in a row
        were; that state is not saved.
      Damaged: there are checkpoints, but none is whole.
      SaveFailed: checkpoints cannot be written.
      TooLarge: no device has the memory for a state.
    """
    folder = os.path.join(self.folder, "checkpoints")
    with contextlib.closing(Checkpoints(folder, self.keeping)) as checkpoints:
      if (checkpoints.latest or 0) >= self.steps:
        logger.info(f"{self.folder} has had its {self.steps} steps")
        return 0
      programs = CompiledTask(
        self.task, self.sharding, self.seed, frozen, held_out
      )
      memory.check_fits(
        "the state",
        memory.bytes_per_device(programs.shapes, programs.places),
        "a larger mesh.fsdp",
      )
      check_disk_space(folder, programs.shapes, self.keeping.keep)
      begin, state = self.begun(programs, checkpoints, held_out)
      journal = MetricWriter(self.folder, begin, processes.is_first())
      saver = CheckpointSaver(checkpoints, journal)
      chapter = TrainingSession(self, programs, journal, saver, held_out, shown)
      stream = prefetch(self.sharding.put_batch, batches(begin))
      with contextlib.closing(journal), InterruptHandler() as interruption:
        return chapter.run(state, begin, stream, interruption)

  def begun(
    self, programs: CompiledTask, checkpoints: Checkpoints, example: Batch
  ) -> tuple[int, Any]:
    """The step to go on from, and its state; 0 and a fresh one.

    Raises:
      Damaged: there are checkpoints, but none is whole.
    """
    if checkpoints.latest is not None:
      begin, state = checkpoints.restore_newest(
        programs.shapes, programs.places
      )
      logger.info(f"resuming {self.folder} from step {begin}")
      return begin, state
    state = programs.init(example)
    if self.start is not None:
      state = programs.begun(state, self.start)
    return 0, state


@dataclasses.dataclass(frozen=True)
class TrainingSession:
  """One uninterrupted stretch of a loop, with everything it needs open."""

  loop: Trainer
  programs: CompiledTask
  journal: MetricWriter
  saver: CheckpointSaver
  held_out: Batch
  shown: Batch

  def run(
    self,
    state: Any,
    begin: int,
    stream: Iterator[Batch],
    interruption: InterruptHandler,
  ) -> int:
    """Steps from `begin` to the end, or to a signal; returns the exit code."""
    loop = self.loop
    with contextlib.ExitStack() as held:
      watchdog = held.enter_context(Watchdog(loop.hang, loop.abort))
      with watchdog.waiting_for(INPUT):
        first, stream = _peeked(stream)
      pace = self.pace(first)
      reporter = ProgressReporter(self.journal, pace, begin, loop.steps)
      held.callback(reporter.close)
      trace = os.path.join(loop.folder, "profile")
      profile = Profiler(trace, loop.profile or (0, 0))
      held.callback(profile.close)
      stepper = StepRunner(self.programs.step, pace, profile, watchdog)
      vigil = NonFiniteMonitor(loop.folder, self.programs.shapes, loop.examples)
      agreed, received = SharedInterrupt(loop.sharding), None
      for step, batch in enumerate(stepper.watch_input(stream), begin + 1):
        state, metrics = stepper(step, state, batch)
        vigil.stepped(step, metrics)
        reporter.flush()
        self.saver.check(step, state)
        received = agreed(interruption.received)
        is_last = step == loop.steps or received is not None
        if is_last or step % loop.every == 0:
          reporter.defer(step, metrics)
        if is_last or step % loop.keeping.every == 0:
          with watchdog.waiting_for(DEVICES):
            vigil.flush()
            reporter.flush()
          self.save(step, state, watchdog)
        each = loop.previews_every
        if each and (step == loop.steps or step % each == 0):
          self.preview(step, state, watchdog)
        if is_last:
          with watchdog.waiting_for(DISK):
            self.saver.finish(step, state)
          break
    if received is not None:
      logger.info(f"{received.name}: saved step {step}")
    return exit_code(received)

  def pace(self, batch: Batch) -> StepTimer:
    """A clock for steps of such batches."""
    rows = len(next(iter(batch.values())))
    is_known = flops.peak(jax.devices()[0].device_kind) is not None
    return StepTimer(rows, self.programs.work(batch) if is_known else 0)

  def save(self, step: int, state: Any, watchdog: Watchdog) -> None:
    """Measures the held-out batch and writes a checkpoint."""
    measured = self.programs.measure(state, self.held_out)
    with watchdog.waiting_for(DEVICES):
      metrics = {name: float(value) for name, value in measured.items()}
    if any(map(math.isnan, metrics.values())):
      raise NonFinite(f"held-out {metrics} at step {step} is not a number")
    named = {f"validation_{name}": value for name, value in metrics.items()}
    self.journal.write(step, named)
    with watchdog.waiting_for(DISK):
      self.saver.save(step, state, metrics)

  def preview(self, step: int, state: Any, watchdog: Watchdog) -> None:
    """Writes previews/NAME_STEP.png and shows them in TensorBoard."""
    shown = self.programs.preview(state, self.shown)
    with watchdog.waiting_for(DEVICES):
      jax.block_until_ready(shown)
    if jax.process_index() > 0:
      return
    for name, images in shown.items():
      captions = self.loop.captions if name == "samples" else ()
      sheet = image_files.image_grid(np.asarray(to_uint8(images)), captions)
      file = os.path.join("previews", f"{name}_{step:07d}.png")
      with warn_on_os_error():
        image_files.write_png(os.path.join(self.loop.folder, file), sheet)
      self.journal.image(step, name, sheet)


def _peeked(stream: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
  """The first item, and the stream as it was."""
  first = next(stream)
  return first, itertools.chain([first], stream)
