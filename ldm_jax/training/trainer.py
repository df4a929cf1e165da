"""The training loop: step; at intervals log, preview, measure and save."""

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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
from ldm_jax.runtime.log import log_duration, warn_on_os_error
from ldm_jax.runtime.monitoring import flops
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter
from ldm_jax.runtime.monitoring.step_timer import (
  Profiler,
  ProgressReporter,
  StepTimer,
)
from ldm_jax.runtime.monitoring.trackers import TensorBoard, Tracker
from ldm_jax.runtime.monitoring.watchdog import DEVICES, DISK, INPUT, Watchdog
from ldm_jax.runtime.signals import InterruptHandler, SharedInterrupt
from ldm_jax.runtime.skip_updates import NonFiniteMonitor
from ldm_jax.runtime.step_runner import StepRunner, prefetch
from ldm_jax.training.compiled_steps import Batch, CompiledTask, Task

logger = logging.getLogger(__name__)

Stream = Iterator[dict[str, np.ndarray]]


class TrainingOutcome(NamedTuple):
  """How a loop ended.

  Attributes:
    step: updates that the run has had.
    interrupted: the signal that ended it, after a checkpoint, or None.
  """

  step: int
  interrupted: signal.Signals | None = None


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Trains a task up to a number of updates, on any mesh, from any step.

  Attributes:
    folder: of the run.
    steps: updates in all.
    checkpoint_policy: when to save, and which checkpoints to keep.
    every: steps between lines of metrics.jsonl.
    previews_every: steps between previews; 0 for none.
    captions: to write under previewed samples.
    profile: the first and the last step to trace, or None.
    start: parameters to begin from instead of initialised ones; donated.
    examples: from a step to the indices of its examples, to name those of an
      update that is skipped.
    hang, abort: seconds, of the `Watchdog`.
    trackers: receive metrics and previews in addition to metrics.jsonl.
  """

  task: Task
  sharding: Sharding
  folder: str
  steps: int
  seed: int = 0
  checkpoint_policy: CheckpointPolicy = CheckpointPolicy()
  every: int = 50
  previews_every: int = 1000
  captions: Sequence[str] = ()
  profile: tuple[int, int] | None = None
  start: Any = None
  examples: Callable[[int], Sequence[int]] = lambda step: ()
  hang: float = 30.0
  abort: float | None = None
  trackers: tuple[Tracker, ...] = (TensorBoard(),)

  def run(
    self,
    frozen: Any,
    batches: Callable[[int], Stream],
    held_out: Batch,
    shown: Batch,
  ) -> TrainingOutcome:
    """Trains from the newest checkpoint, or from the start.

    Args:
      batches: from a step to this process's batches from there on.
      held_out: the batch measured at every checkpoint.
      shown: the batch that previews are made of.

    Raises:
      NonFinite: a loss or a parameter is not finite, or too many gradients in a
        row were not; that state is not saved.
      DamagedFile: there are checkpoints, but none is intact.
      SaveFailed: checkpoints cannot be written.
      TooLarge: no device has the memory for a state.
    """
    folder = os.path.join(self.folder, "checkpoints")
    policy = self.checkpoint_policy
    with contextlib.closing(Checkpoints(folder, policy)) as checkpoints:
      compiled = CompiledTask(
        self.task, self.sharding, self.seed, frozen, held_out
      )
      memory.check_fits(
        "the state",
        memory.bytes_per_device(compiled.shapes, compiled.shardings),
        "a larger mesh.fsdp",
      )
      begin, state = self.initial_state(compiled, checkpoints, held_out)
      if begin >= self.steps:  # and that checkpoint is intact
        logger.info(f"{self.folder} has already run its {self.steps} steps")
        return TrainingOutcome(begin)
      check_disk_space(folder, compiled.shapes, policy.keep)
      writer = MetricWriter(
        self.folder, begin, processes.is_first(), self.trackers
      )
      saver = CheckpointSaver(checkpoints, writer)
      session = TrainingSession(self, compiled, writer, saver, held_out, shown)
      stream = prefetch(self.sharding.put_batch, batches(begin))
      with contextlib.closing(writer), InterruptHandler() as interruption:
        return session.run(state, begin, stream, interruption)

  def initial_state(
    self, compiled: CompiledTask, checkpoints: Checkpoints, example: Batch
  ) -> tuple[int, Any]:
    """The step to resume from and its state, or 0 and an initialised one.

    Raises:
      DamagedFile: there are checkpoints, but none is intact.
    """
    if checkpoints.latest is not None:
      begin, state = checkpoints.restore_newest(
        compiled.shapes, compiled.shardings
      )
      if begin < self.steps:
        logger.info(f"resuming {self.folder} from step {begin}")
      return begin, state
    with log_duration("compiling and running the initialisation"):
      if self.start is None:
        return 0, jax.block_until_ready(compiled.init(example))
      state = compiled.init_from(example, self.start)
      return 0, jax.block_until_ready(state)


@dataclasses.dataclass(frozen=True)
class TrainingSession:
  """One uninterrupted run of the loop, with its open files and programs."""

  trainer: Trainer
  compiled: CompiledTask
  writer: MetricWriter
  saver: CheckpointSaver
  held_out: Batch
  shown: Batch

  def run(
    self,
    state: Any,
    begin: int,
    stream: Iterator[Batch],
    interruption: InterruptHandler,
  ) -> TrainingOutcome:
    """Steps from `begin` to the end, or to a signal."""
    trainer = self.trainer
    with contextlib.ExitStack() as held:
      watchdog = held.enter_context(Watchdog(trainer.hang, trainer.abort))
      with watchdog.waiting_for(INPUT):
        first, stream = _peeked(stream)
      timer = self.step_timer(first)
      reporter = ProgressReporter(self.writer, timer, begin, trainer.steps)
      held.callback(reporter.close)
      trace = os.path.join(trainer.folder, "profile")
      profile = Profiler(trace, trainer.profile or (0, 0))
      held.callback(profile.close)
      stepper = StepRunner(self.compiled.step, timer, profile, watchdog)
      monitor = NonFiniteMonitor(
        trainer.folder, self.compiled.shapes, trainer.examples
      )
      agreed, received = SharedInterrupt(trainer.sharding), None
      for step, batch in enumerate(stepper.watch_input(stream), begin + 1):
        state, metrics = stepper(step, state, batch)
        monitor.stepped(step, metrics)
        reporter.flush()
        self.saver.check(step, state)
        received = agreed(interruption.received)
        is_last = step == trainer.steps or received is not None
        if is_last or step % trainer.every == 0:
          reporter.defer(step, metrics)
        if is_last or step % trainer.checkpoint_policy.every == 0:
          with watchdog.waiting_for(DEVICES):
            monitor.flush()
            reporter.flush()
          self.save(step, state, watchdog)
        each = trainer.previews_every
        if each and (step == trainer.steps or step % each == 0):
          self.preview(step, state, watchdog)
        if is_last:
          done = log_duration(f"saving the checkpoint of step {step}")
          with done, watchdog.waiting_for(DISK):
            self.saver.finish(step, state)
          break
    if received is not None:
      logger.info(f"{received.name}: saved step {step}")
    return TrainingOutcome(step, received)

  def step_timer(self, batch: Batch) -> StepTimer:
    """Measures steps of such batches."""
    rows = len(next(iter(batch.values())))
    is_known = flops.peak(jax.devices()[0].device_kind) is not None
    return StepTimer(rows, self.compiled.work(batch) if is_known else 0)

  def save(self, step: int, state: Any, watchdog: Watchdog) -> None:
    """Measures the held-out batch and writes a checkpoint."""
    count = len(next(iter(self.held_out.values())))
    with log_duration(f"measuring {count} held-out examples"):
      measured = self.compiled.measure(state, self.held_out)
      with watchdog.waiting_for(DEVICES):
        metrics = {name: float(value) for name, value in measured.items()}
    if any(map(math.isnan, metrics.values())):
      raise NonFinite(f"held-out {metrics} at step {step} is not a number")
    prefixed = {f"validation_{name}": value for name, value in metrics.items()}
    self.writer.write(step, prefixed)
    with watchdog.waiting_for(DISK):
      self.saver.save(step, state, metrics)

  def preview(self, step: int, state: Any, watchdog: Watchdog) -> None:
    """Writes previews/NAME_STEP.png and the same to the trackers."""
    with log_duration("making a preview"):
      shown = self.compiled.preview(state, self.shown)
      with watchdog.waiting_for(DEVICES):
        jax.block_until_ready(shown)
    if jax.process_index() > 0:
      return
    for name, images in shown.items():
      captions = self.trainer.captions if name == "samples" else ()
      sheet = image_files.image_grid(np.asarray(to_uint8(images)), captions)
      file = os.path.join("previews", f"{name}_{step:07d}.png")
      with warn_on_os_error():
        image_files.write_png(os.path.join(self.trainer.folder, file), sheet)
      self.writer.image(step, name, sheet)


def _peeked(stream: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
  """The first item, and the stream as it was."""
  first = next(stream)
  return first, itertools.chain([first], stream)
