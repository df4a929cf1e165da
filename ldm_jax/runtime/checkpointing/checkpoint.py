"""Checkpoints of training states, by Orbax: asynchronous, atomic, verified.

A state is restored onto any mesh. Orbax does not notice most flipped bits, so
every state is saved with the checksums of its leaves, which are compared when
it is restored.
"""

import glob
import logging
import os
import re
import shutil
from typing import Any

import jax

from ldm_jax.errors import ConfigError, DamagedFile, NonFinite, SaveFailed
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.checkpointing.checksums import checksums, leaf_paths
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.checkpointing.read_checkpoints import (
  is_empty_step,
  newest_intact,
)
from ldm_jax.runtime.checkpointing.tree_io import (
  absolute,
  check_tree,
  damage_errors,
  import_orbax,
  placed,
  read_once,
)
from ldm_jax.runtime.devices import processes

logger = logging.getLogger(__name__)

METRICS = "metrics"  # a folder of a step, and the file in it
DELETED = "deleted"  # where Orbax moves a step first: deletion is atomic
INCOMPLETE = ".orbax-checkpoint-tmp"  # ends the names of unfinished writes


class Checkpoints:
  """The checkpoints of one run, one per step.

  Args:
    folder: holds one subfolder per step; made if it is missing.
    policy: which steps are kept.
  """

  def __init__(
    self, folder: str, policy: CheckpointPolicy = CheckpointPolicy()
  ):
    ocp = import_orbax()

    self._orbax = ocp
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.preservation_policy(),
      cleanup_tmp_directories=True,
      todelete_subdir=DELETED,
      # Without best_fn Orbax writes no metrics, and a restart would not
      # know which checkpoint is the best.
      best_fn=None if policy.best is None else policy.score,
      best_mode=policy.best_is,
    )
    self._policy = policy
    self._folder = absolute(folder)
    if processes.is_first():
      _set_aside_empty_steps(self._folder)
      _set_aside_damaged_metrics(self._folder)
    processes.barrier("metrics checked")
    self._manager = ocp.CheckpointManager(self._folder, options=options)
    self._saving: int | None = None  # a step whose save may still fail

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

    Args:
      metrics: decide which checkpoint is the best; see `CheckpointPolicy`.

    Raises:
      NonFinite: a leaf holds NaN or infinity; nothing is written.
      SaveFailed: it cannot be written, or the previous save has failed.
    """
    self.wait()
    sums = checksums(state)
    if sums.non_finite:
      raise NonFinite(
        f"step {step} is not saved: {len(sums.non_finite)} of its leaves hold "
        f"values that are not finite, first {sums.non_finite[0]}"
      )
    args = self._orbax.args
    try:
      self._manager.save(
        step,
        args=args.Composite(
          state=args.StandardSave(state), digests=args.JsonSave(sums.leaves)
        ),
        metrics=metrics,
        force=True,
      )
    except Exception as error:
      raise self._failed(step, error) from error
    self._saving = step

  @property
  def is_saving(self) -> bool:
    """Whether a save is in progress, or its outcome not yet checked."""
    return self._saving is not None

  def check(self) -> None:
    """Raises SaveFailed if the last save has failed; does not wait for it."""
    if self._saving is None or self._manager.is_saving_in_progress():
      return
    self.wait()

  def prune(self) -> None:
    """Deletes all but the newest, the best and each `keep_every`-th step."""
    *older, _ = self.steps or [None]
    best, every = self._manager.best_step(), self._policy.keep_every
    for step in older:
      if step != best and not (every and step % every == 0):
        self._manager.delete(step)
    self._empty_deleted()

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The state of `step`, bit for bit.

    Args:
      abstract: tree of shapes and dtypes.
      shardings: the same tree of shardings; any mesh.

    Raises:
      DamagedFile: it is not what was saved.
    """
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      abstract,
      shardings,
    )
    args = self._orbax.args
    with damage_errors(f"step {step}"):
      restored = self._manager.restore(
        step,
        args=args.Composite(
          state=args.StandardRestore(read_once(target)),
          digests=args.JsonRestore(),
        ),
      )
    check_tree(f"step {step}", restored["digests"], restored["state"])
    return placed(f"step {step}", restored["state"], target)

  def restore_newest(self, abstract: Any, shardings: Any) -> tuple[int, Any]:
    """The newest intact step and its state; see `restore` for arguments.

    Damaged newer steps are logged and moved to damaged/, a sibling of the
    folder.

    Raises:
      ConfigError: the newest step holds a part of the state alone.
      DamagedFile: no step is intact; none is moved.
    """
    restore = lambda step: self.restore(step, abstract, shardings)
    try:
      step, state = newest_intact(self.steps, restore)
    except DamagedFile:
      self._check_complete(self.steps[-1], abstract)
      raise
    damaged = [other for other in self.steps if other > step]
    if processes.is_first():
      for other in damaged:
        _set_aside(self._folder, str(other))
    processes.barrier("damaged checkpoints moved")
    if damaged:
      self._manager.reload()
    return step, state

  def _check_complete(self, step: int, abstract: Any) -> None:
    """Raises ConfigError if a step holds a part of the state alone.

    Without its checksums it is damaged, and nothing is known of it.
    """
    args = self._orbax.args
    try:
      with damage_errors(f"step {step}"):
        found = self._manager.restore(
          step, args=args.Composite(digests=args.JsonRestore())
        )
    except DamagedFile:
      return
    needed = set(leaf_paths(abstract))
    if needed - found["digests"].keys():
      raise ConfigError(
        f"step {step} in {self._folder} holds parameters without the state of "
        "their optimizer, as push uploads them; training cannot be resumed "
        "from it, but can begin with its parameters in a new workdir "
        "(--config.start)"
      )

  def wait(self) -> None:
    """Returns when the last save is on disk.

    Raises:
      SaveFailed: it could not be written.
    """
    step, self._saving = self._saving, None
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(step, error) from error
    self._empty_deleted()

  def _empty_deleted(self) -> None:
    """Removes the steps that Orbax has moved to DELETED."""
    if processes.is_first():
      shutil.rmtree(os.path.join(self._folder, DELETED), ignore_errors=True)

  def close(self) -> None:
    """Waits for the last save and closes Orbax's manager; raises as `wait`."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _failed(self, step: int | None, error: Exception) -> SaveFailed:
    """The exception to raise; removes what was written in part."""
    reason = " ".join(str(error).split())[:300]
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
      reason = os.strerror(int(code[1]))
    if processes.is_first():
      for name in os.listdir(self._folder):
        if name.endswith(INCOMPLETE):
          shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
    self._manager.reload()
    return SaveFailed(f"step {step} is not saved in {self._folder}: {reason}")


def _set_aside_empty_steps(folder: str) -> None:
  """Moves empty folders of steps to damaged/.

  Orbax counts them as checkpoints.
  """
  names = os.listdir(folder) if os.path.isdir(folder) else []
  for name in names:
    is_step = name.isdecimal() and os.path.isdir(os.path.join(folder, name))
    if is_step and is_empty_step(folder, int(name)):
      logger.warning(f"step {name} is an empty folder, not a checkpoint")
      _set_aside(folder, name)


def _set_aside_damaged_metrics(folder: str) -> None:
  """Moves unreadable metrics to damaged/; Orbax would fail to open the folder.

  They only record which checkpoint is the best.
  """
  for path in glob.glob(os.path.join(glob.escape(folder), "*", METRICS)):
    try:
      read_object(os.path.join(path, METRICS), DamagedFile, has_constants=True)
    except (OSError, DamagedFile) as error:
      step = os.path.basename(os.path.dirname(path))
      logger.warning(f"metrics of step {step} cannot be read: {error}")
      _set_aside(folder, os.path.join(step, METRICS))


def _set_aside(folder: str, what: str) -> None:
  """Moves a damaged file or folder to damaged/, next to `folder`."""
  aside = os.path.join(os.path.dirname(folder), "damaged")
  os.makedirs(aside, exist_ok=True)
  stem = what.replace(os.sep, "_")
  number = sum(name.split("-")[0] == stem for name in os.listdir(aside))
  name = f"{stem}-{number}" if number else stem
  os.rename(os.path.join(folder, what), os.path.join(aside, name))
