"""How it runs: for each batch, step; sometimes log, preview, measure, save."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax.pixels import to_uint8
from ldm_jax.programs import Batch, Programs, Task
from ldm_jax.runtime import flops, pictures
from ldm_jax.runtime.checkpoint import Checkpoints, Keeping
from ldm_jax.runtime.errors import NonFinite
from ldm_jax.runtime.metrics import Journal
from ldm_jax.runtime.progress import Pace, Profile, Reporter
from ldm_jax.runtime.sharding import Sharding
from ldm_jax.runtime.signals import Interruption
from ldm_jax.runtime.speech import announced, say
from ldm_jax.runtime.steady import Vigil

Stream = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Loop:
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
  profile: tuple[int, int] | None = None
  start: Any = None
  examples: Callable[[int], Sequence[int]] = lambda step: ()

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
    """
    folder = os.path.join(self.folder, "checkpoints")
    with contextlib.closing(Checkpoints(folder, self.keeping)) as checkpoints:
      if (checkpoints.latest or 0) >= self.steps:
        say(f"{self.folder} has had its {self.steps} steps")
        return 0
      programs = Programs(self.task, self.sharding, self.seed, frozen, held_out)
      begin, state = self.begun(programs, checkpoints, held_out)
      journal = Journal(self.folder, begin, jax.process_index() == 0)
      chapter = Chapter(self, programs, journal, checkpoints, held_out, shown)
      stream = self.sharding.ahead(batches(begin))
      with contextlib.closing(journal), Interruption() as interruption:
        return chapter.run(state, begin, stream, interruption)

  def begun(
    self, programs: Programs, checkpoints: Checkpoints, example: Batch
  ) -> tuple[int, Any]:
    """The step to go on from, and its state; 0 and a fresh one.

    Raises:
      Damaged: there are checkpoints, but none is whole.
    """
    if checkpoints.latest is not None:
      begin, state = checkpoints.newest(programs.shapes, programs.places)
      say(f"resuming {self.folder} from step {begin}")
      return begin, state
    state = programs.init(example)
    if self.start is not None:
      state = programs.begun(state, self.start)
    return 0, state


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
    """Steps from `begin` to the end, or to a signal; returns the exit code.

    Once compiled, a step moves nothing between host and devices but what
    `stream` has put there.
    """
    loop, batch = self.loop, next(stream)
    compiled = {_shapes(batch)}
    with announced("compiling the training step"):
      state, metrics = jax.block_until_ready(self.programs.step(state, batch))
    pace = self.pace(batch)
    pace.stepped(metrics)
    vigil = Vigil(loop.folder, self.programs.shapes, loop.examples)
    fed = itertools.chain([batch], pace.fed(stream))
    reporter = Reporter(self.journal, pace, begin, loop.steps)
    folder = os.path.join(loop.folder, "profile")
    profile = Profile(folder, loop.profile or (0, 0))
    try:
      for step, batch in enumerate(fed, begin + 1):
        if _shapes(batch) not in compiled:
          compiled.add(_shapes(batch))
          size = " x ".join(map(str, batch["image"].shape[1:3]))
          with announced(f"compiling step {len(compiled)}, for {size}"):
            found = self.programs.step(state, batch)
            state, metrics = jax.block_until_ready(found)
          pace.restarted(metrics)
        elif step > begin + 1:
          with profile.around(step), jax.transfer_guard("disallow"):
            state, metrics = self.programs.step(state, batch)
          pace.stepped(metrics)
          profile.after(step, metrics)
        vigil.stepped(step, metrics)
        reporter.flush()
        is_last = step == loop.steps or interruption.received is not None
        if is_last or step % loop.every == 0:
          reporter.later(step, metrics)
        if is_last or step % loop.keeping.every == 0:
          vigil.flush()
          reporter.flush()
          self.save(step, state)
        each = loop.previews_every
        if each and (step == loop.steps or step % each == 0):
          self.preview(step, state)
        if is_last:
          break
    finally:
      profile.close()
      reporter.close()
    if interruption.received is not None:
      say(
        f"{interruption.received.name}: saved step {step}; the same command "
        "goes on from there"
      )
    return interruption.exit_code

  def pace(self, batch: Batch) -> Pace:
    """A clock for steps of such batches."""
    rows = len(next(iter(batch.values())))
    is_known = flops.peak(jax.devices()[0].device_kind) is not None
    return Pace(rows, self.programs.work() if is_known else 0)

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


def _shapes(batch: Batch) -> tuple:
  """What a step is compiled for."""
  return tuple(sorted((name, a.shape) for name, a in batch.items()))
