"""How it runs: for each batch, step; sometimes log, preview, measure, save."""

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ldm_jax.pixels import to_uint8
from ldm_jax.runtime import pictures
from ldm_jax.runtime.checkpoint import Checkpoints, Keeping
from ldm_jax.runtime.metrics import Journal
from ldm_jax.runtime.sharding import Sharding
from ldm_jax.runtime.signals import Interruption

Batch = dict[str, jax.Array]
Stream = Iterator[dict[str, np.ndarray]]

INIT, TRAIN, MEASURE, PREVIEW = range(4)  # what a key is for


@runtime_checkable
class Task(Protocol):
  """One meaning of "a training step"; the tasks happen to fit.

  `frozen` holds what is not trained: sharded, not donated, not in the
  checkpoint. Random numbers are drawn over the global batch.
  """

  def init(self, key: Any, batch: Any, frozen: Any) -> Any:
    """A fresh state; its `step` counts updates."""

  def step(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """(state, metrics) after one update."""

  def measure(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """Metrics of held-out examples."""

  def preview(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """{name: images in [-1, 1]} of held-out examples."""


class NonFinite(ArithmeticError):
  """A loss is no longer a number."""


class Programs:
  """A task's four functions, jitted for a mesh; the state is donated.

  A step's key is a function of (seed, step), so a restart repeats the run;
  measures and previews draw the same noise every time, to be compared.
  """

  def __init__(
    self, task: Task, sharding: Sharding, seed: int, frozen: Any, batch: Batch
  ):
    root, copied = jax.random.key(seed), sharding.replicated
    purpose = lambda n: jax.random.fold_in(root, n)
    self.shapes = jax.eval_shape(task.init, root, batch, frozen)
    self.places = sharding.state(self.shapes)

    def step(state: Any, frozen: Any, batch: Batch, key: jax.Array):
      key = jax.random.fold_in(key, state.step)
      return task.step(state, frozen, batch, key)

    def bound(function: Callable, n: int, **options: Any) -> Callable:
      jitted = jax.jit(function, **options)
      return lambda state, batch: jitted(state, frozen, batch, purpose(n))

    # Runs once and draws every kernel by itself: optimised, its compilation
    # takes a CPU as long as the step's.
    is_cpu = jax.default_backend() == "cpu"
    swift = {"xla_backend_optimization_level": 0} if is_cpu else None
    placed = jax.jit(
      task.init, out_shardings=self.places, compiler_options=swift
    )
    self.init = lambda batch: placed(purpose(INIT), batch, frozen)
    moved = (self.places, copied)
    self.step = bound(step, TRAIN, donate_argnums=0, out_shardings=moved)
    self.measure = bound(task.measure, MEASURE, out_shardings=copied)
    self.preview = bound(task.preview, PREVIEW, out_shardings=copied)

  def begun(self, state: Any, start: Any) -> Any:
    """The state with other parameters; its average is a copy of them."""
    places = (self.places.params, self.places.ema)
    twice = jax.jit(lambda start: (start, start), out_shardings=places)
    params, ema = twice(start)
    return state.replace(params=params, ema=ema)


class Reporter:
  """Tells of a step once the next one is under way, so none has to wait."""

  def __init__(self, journal: Journal, batch: int, begin: int, steps: int):
    from tqdm import tqdm

    self._journal, self._batch = journal, batch
    self._pending: tuple[int, Any] | None = None
    self._told, self._since = begin, time.monotonic()
    self._bar = tqdm(
      total=steps,
      initial=begin,
      disable=jax.process_index() > 0,
      mininterval=0.5 if sys.stderr.isatty() else 30,
    )

  def later(self, step: int, metrics: Any) -> None:
    """Keeps the metrics of `step` for the next `flush`."""
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Writes what was kept.

    Raises:
      NonFinite: if it is not a number.
    """
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in metrics.items()}
    now = time.monotonic()
    speed = (step - self._told) * self._batch / (now - self._since)
    values["images_per_second"] = speed
    self._journal.write(step, values)
    self._bar.set_postfix_str(
      f"loss {values['loss']:.4g}, {speed:.0f} images/s", refresh=False
    )
    self._bar.update(step - self._told)
    self._told, self._since = step, now
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
      raise NonFinite(
        f"{' and '.join(bad)} at step {step} is not finite; the last "
        "checkpoint is from before; try a lower learning rate or clip"
      )

  def close(self) -> None:
    """Ends the line of the progress bar."""
    self._bar.close()


@dataclasses.dataclass(frozen=True)
class Loop:
  """Steps a task up to a number of updates, on any mesh, from any step.

  Attributes:
    folder: of the run.
    every: steps between lines of the journal.
    previews_every: steps between previews; 0 shows none.
    captions: to write under previewed samples.
    start: parameters to begin from instead of fresh ones.
  """

  task: Task
  sharding: Sharding
  folder: str
  steps: int
  seed: int = 0
  keeping: Keeping = Keeping()
  every: int = 50
  previews_every: int = 1000
  captions: Sequence[str] = ()
  start: Any = None

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
      NonFinite: if a loss is; that state is not saved.
    """
    folder = os.path.join(self.folder, "checkpoints")
    checkpoints = Checkpoints(folder, self.keeping)
    begin = checkpoints.latest or 0
    journal = Journal(self.folder, begin, jax.process_index() == 0)
    try:
      if begin >= self.steps:
        say(f"{self.folder} has had its {self.steps} steps")
        return 0
      programs = Programs(self.task, self.sharding, self.seed, frozen, held_out)
      if begin:
        say(f"resuming {self.folder} from step {begin}")
        state = checkpoints.restore(begin, programs.shapes, programs.places)
      else:
        state = programs.init(held_out)
        if self.start is not None:
          state = programs.begun(state, self.start)
      chapter = Chapter(self, programs, journal, checkpoints, held_out, shown)
      stream = self.sharding.ahead(batches(begin))
      with Interruption() as interruption:
        return chapter.run(state, begin, stream, interruption)
    finally:
      checkpoints.close()
      journal.close()


@dataclasses.dataclass(frozen=True)
class Chapter:
  """One uninterrupted stretch of a loop, with everything it needs open."""

  loop: Loop
  programs: Programs
  journal: Journal
  checkpoints: Checkpoints
  held_out: Batch
  shown: Batch

  def run(
    self,
    state: Any,
    begin: int,
    stream: Iterator[Batch],
    interruption: Interruption,
  ) -> int:
    """Steps from `begin` to the end, or to a signal; returns the exit code."""
    loop, batch = self.loop, next(stream)
    rows = len(next(iter(batch.values())))
    with announced("compiling the training step"):
      state, metrics = jax.block_until_ready(self.programs.step(state, batch))
    reporter = Reporter(self.journal, rows, begin, loop.steps)
    try:
      for step in range(begin + 1, loop.steps + 1):
        if step > begin + 1:
          state, metrics = self.programs.step(state, next(stream))
        reporter.flush()
        is_last = step == loop.steps or interruption.received is not None
        if is_last or step % loop.every == 0:
          reporter.later(step, metrics)
        if is_last or step % loop.keeping.every == 0:
          reporter.flush()
          self.save(step, state)
        each = loop.previews_every
        if each and (step == loop.steps or step % each == 0):
          self.preview(step, state)
        if is_last:
          break
    finally:
      reporter.close()
    if interruption.received is not None:
      say(
        f"{interruption.received.name}: saved step {step}; the same command "
        "goes on from there"
      )
    return interruption.exit_code

  def save(self, step: int, state: Any) -> None:
    """Measures the held-out batch and writes a checkpoint."""
    measured = self.programs.measure(state, self.held_out)
    metrics = {name: float(value) for name, value in measured.items()}
    if any(map(math.isnan, metrics.values())):
      raise NonFinite(f"held-out {metrics} at step {step} is not a number")
    named = {f"validation_{name}": value for name, value in metrics.items()}
    self.journal.write(step, named)
    self.checkpoints.save(step, state, metrics)

  def preview(self, step: int, state: Any) -> None:
    """Writes previews/NAME_STEP.png and shows them in TensorBoard."""
    shown = self.programs.preview(state, self.shown)
    if jax.process_index() > 0:
      return
    for name, images in shown.items():
      captions = self.loop.captions if name == "samples" else ()
      sheet = pictures.grid(np.asarray(to_uint8(images)), captions)
      file = os.path.join("previews", f"{name}_{step:07d}.png")
      pictures.write_png(os.path.join(self.loop.folder, file), sheet)
      self.journal.picture(step, name, sheet)


@contextlib.contextmanager
def announced(deed: str) -> Iterator[None]:
  """Says what is slow when it begins, and how long it took."""
  begin = time.monotonic()
  say(f"{deed} ...", end=" ")
  yield
  say(f"{time.monotonic() - begin:.1f} s")


def say(line: str, end: str = "\n") -> None:
  """Writes to stderr, from process 0."""
  if jax.process_index() == 0:
    print(line, end=end, file=sys.stderr, flush=True)
