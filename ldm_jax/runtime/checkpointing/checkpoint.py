"""States on disk, by Orbax: asynchronous, atomic, on any mesh, verified.

Orbax restores most flipped bits without a word, so every state lies beside the
digests of its leaves, which are looked at when it comes back.
"""

import glob
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from ldm_jax.errors import DamagedFile, NonFinite, SaveFailed
from ldm_jax.runtime.checkpointing import tree_io
from ldm_jax.runtime.checkpointing.checksums import checksums
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.checkpointing.tree_io import (
  absolute,
  check,
  damage_errors,
  import_orbax,
)
from ldm_jax.runtime.devices import processes

logger = logging.getLogger(__name__)

Part = TypeVar("Part")

METRICS = "metrics"  # a folder of a step, and the file in it
GONE = "deleted"  # where one goes first, so that none is ever half there
HALF = ".orbax-checkpoint-tmp"  # how the name of what is half written ends


class Checkpoints:
  """The checkpoints of one run, one per step."""

  def __init__(
    self, folder: str, policy: CheckpointPolicy = CheckpointPolicy()
  ):
    ocp = import_orbax()

    self._orbax = ocp
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.preservation_policy(),
      cleanup_tmp_directories=True,
      todelete_subdir=GONE,
      # Without it metrics are not written, and a restart forgets the best.
      best_fn=None if policy.best is None else policy.score,
      best_mode=policy.best_is,
    )
    self._policy = policy
    self._folder = absolute(folder)
    if processes.is_first():
      _forget_damaged_metrics(self._folder)
    processes.barrier("metrics can be read")
    self._manager = ocp.CheckpointManager(self._folder, options=options)
    self._saving: int | None = None  # a step that is not known to be on disk

  @property
  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """All complete steps, oldest first."""
    return sorted(self._manager.all_steps())

  def save(
    self, step: int, state: Any, metrics: dict[str, float] | None = None
  ) -> None:
    """Starts writing `state`; returns once it is copied off the devices.

    Raises:
      NonFinite: some of it is not a number; nothing is written.
      SaveFailed: it cannot be written, or the one before could not.
    """
    self.wait()
    told = checksums(state)
    if told.non_finite:
      raise NonFinite(
        f"step {step} is not saved: {len(told.non_finite)} of its leaves hold "
        f"values that are not finite, first {told.non_finite[0]}"
      )
    args = self._orbax.args
    try:
      self._manager.save(
        step,
        args=args.Composite(
          state=args.StandardSave(state), digests=args.JsonSave(told.leaves)
        ),
        metrics=metrics,
        force=True,
      )
    except Exception as error:
      raise self._failed(step, error) from error
    self._saving = step

  @property
  def is_saving(self) -> bool:
    """Whether something is not known to be on disk."""
    return self._saving is not None

  def check(self) -> None:
    """Raises SaveFailed if the last save has failed; waits for nothing."""
    if self._saving is None or self._manager.is_saving_in_progress():
      return
    self.wait()

  def prune(self) -> None:
    """Deletes, for want of room, all but the newest, the best, and those that
    stay for good."""
    *older, _ = self.steps or [None]
    best, every = self._manager.best_step(), self._policy.keep_every
    for step in older:
      if step != best and not (every and step % every == 0):
        self._manager.delete(step)
    self._sweep()

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The state of `step`, bit for bit, placed as `shardings` says.

    Raises:
      Damaged: it is not what was saved.
    """
    target = jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      abstract,
      shardings,
    )
    args = self._orbax.args
    with damage_errors(f"step {step}"):
      restored = self._manager.restore(
        step,
        args=args.Composite(
          state=args.StandardRestore(target), digests=args.JsonRestore()
        ),
      )
    check(f"step {step}", restored["digests"], restored["state"])
    return restored["state"]

  def restore_newest(self, abstract: Any, shardings: Any) -> tuple[int, Any]:
    """The newest step whose state is whole, and that state.

    Damaged ones are told of and put aside, into damaged/ beside the folder.

    Raises:
      Damaged: none is whole; all stay where they are.
    """
    restore = lambda step: self.restore(step, abstract, shardings)
    step, state = _newest_whole(self.steps, restore)
    odd = [other for other in self.steps if other > step]
    if processes.is_first():
      for other in odd:
        _put_aside(self._folder, str(other))
    processes.barrier("damaged checkpoints are aside")
    if odd:
      self._manager.reload()
    return step, state

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      SaveFailed: it could not be written.
    """
    step, self._saving = self._saving, None
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(step, error) from error
    self._sweep()

  def _sweep(self) -> None:
    """Deletes what has been put out of sight."""
    if processes.is_first():
      gone = os.path.join(self._folder, GONE)
      shutil.rmtree(gone, ignore_errors=True)

  def close(self) -> None:
    """Waits and lets go; raises as `wait` does."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _failed(self, step: int | None, error: Exception) -> SaveFailed:
    """What to raise; what was half written is gone."""
    reason = " ".join(str(error).split())[:300]
    if told := re.search(r"os_error_code='(\d+)'", str(error)):
      reason = os.strerror(int(told[1]))
    if processes.is_first():
      for name in os.listdir(self._folder):
        if name.endswith(HALF):
          shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
    self._manager.reload()
    return SaveFailed(f"step {step} is not saved in {self._folder}: {reason}")


def latest_step(folder: str) -> int | None:
  """The newest complete step under `folder`, or None; nothing is touched."""
  if not os.path.isdir(folder):
    return None
  with _reading(folder) as manager:
    return manager.latest_step()


def restore_newest_subtree(folder: str, target: Any) -> tuple[int, Any]:
  """Those subtrees that `target` names, of the newest step where they are
  whole, and that step.

  Args:
    target: a tree of `ShapeDtypeStruct` with shardings.

  Raises:
    Damaged: they are whole in none.
  """
  ocp = import_orbax()
  arguments = ocp.args.PyTreeRestore(
    item=target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  with _reading(folder) as manager:

    def restore(step: int) -> Any:
      with damage_errors(f"step {step}"):
        found = manager.restore(
          step,
          args=ocp.args.Composite(
            state=arguments, digests=ocp.args.JsonRestore()
          ),
        )
      check(f"step {step}", found["digests"], found["state"])
      return found["state"]

    return _newest_whole(sorted(manager.all_steps()), restore)


def verify_checkpoints(
  folder: str,
) -> Iterator[tuple[int, str | None, dict[str, str]]]:
  """Every step under `folder`, oldest first: what is wrong with it, or None,
  and the digests of its leaves as they are stored."""
  with _reading(folder) as manager:
    steps = sorted(manager.all_steps())
  for step in steps:
    path = os.path.join(folder, str(step))
    yield (step, *tree_io.verify_tree(path, f"step {step}", "state"))


def _newest_whole(
  steps: list[int], restore: Callable[[int], Part]
) -> tuple[int, Part]:
  """The last of `steps` that can be restored; the later ones are told of."""
  odd = []
  for step in reversed(steps):
    try:
      found = restore(step)
    except DamagedFile as error:
      odd.append(str(error))
    else:
      for line in odd:
        logger.warning(f"{line}; using step {step}")
      return step, found
  raise DamagedFile(f"no checkpoint of {len(steps)} is whole: {odd[0]}")


def _forget_damaged_metrics(folder: str) -> None:
  """Puts metrics aside that cannot be read, which would bar a run; they only
  say which checkpoint is the best."""
  for path in glob.glob(os.path.join(glob.escape(folder), "*", METRICS)):
    try:
      with open(os.path.join(path, METRICS)) as file:
        json.load(file)
    except (OSError, ValueError) as error:
      step = os.path.basename(os.path.dirname(path))
      logger.warning(f"metrics of step {step} cannot be read: {error}")
      _put_aside(folder, os.path.join(step, METRICS))


def _put_aside(folder: str, what: str) -> None:
  """Moves what is damaged out of the manager's sight; nothing is deleted."""
  aside = os.path.join(os.path.dirname(folder), "damaged")
  os.makedirs(aside, exist_ok=True)
  stem = what.replace(os.sep, "_")
  number = sum(name.split("-")[0] == stem for name in os.listdir(aside))
  name = f"{stem}-{number}" if number else stem
  os.rename(os.path.join(folder, what), os.path.join(aside, name))


def _reading(folder: str) -> Any:
  ocp = import_orbax()

  options = ocp.CheckpointManagerOptions(read_only=True)
  return ocp.CheckpointManager(absolute(folder), options=options)
