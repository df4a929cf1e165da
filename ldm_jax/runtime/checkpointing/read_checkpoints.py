"""Checkpoints of a run, opened read-only."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ldm_jax.errors import DamagedFile
from ldm_jax.runtime.checkpointing import tree_io
from ldm_jax.runtime.checkpointing.tree_io import (
  absolute,
  check_tree,
  damage_errors,
  import_orbax,
)

logger = logging.getLogger(__name__)

Tree = TypeVar("Tree")


def latest_step(folder: str) -> int | None:
  """The newest complete step under `folder`, or None; read-only."""
  if not os.path.isdir(folder):
    return None
  with _open_read_only(folder) as manager:
    steps = [s for s in manager.all_steps() if not is_empty_step(folder, s)]
    return max(steps, default=None)


def is_empty_step(folder: str, step: int) -> bool:
  """Whether a step's folder holds nothing; Orbax takes it for a checkpoint."""
  return not os.listdir(os.path.join(folder, str(step)))


def restore_newest_subtree(folder: str, target: Any) -> tuple[int, Any]:
  """The newest step in which the subtrees of `target` are intact, and those.

  Args:
    target: tree of `ShapeDtypeStruct` with shardings, a part of the state.

  Raises:
    DamagedFile: they are intact in no step.
  """
  ocp = import_orbax()
  item = tree_io.read_once(target)
  arguments = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  with _open_read_only(folder) as manager:

    def restore(step: int) -> Any:
      with damage_errors(f"step {step}"):
        found = manager.restore(
          step,
          args=ocp.args.Composite(
            state=arguments, digests=ocp.args.JsonRestore()
          ),
        )
      check_tree(f"step {step}", found["digests"], found["state"])
      return tree_io.placed(f"step {step}", found["state"], target)

    return newest_intact(sorted(manager.all_steps()), restore)


def verify_checkpoints(
  folder: str,
) -> Iterator[tuple[int, str | None, dict[str, str]]]:
  """(step, error or None, stored checksum by leaf) of all steps, oldest first.

  Everything is read, and compared with the stored checksums.
  """
  with _open_read_only(folder) as manager:
    steps = sorted(manager.all_steps())
  for step in steps:
    path = os.path.join(folder, str(step))
    yield (step, *tree_io.verify_tree(path, f"step {step}", "state"))


def newest_intact(
  steps: list[int], restore: Callable[[int], Tree]
) -> tuple[int, Tree]:
  """The last of `steps` that can be restored; logs the damaged later ones."""
  errors = []
  for step in reversed(steps):
    try:
      found = restore(step)
    except DamagedFile as error:
      errors.append(str(error))
    else:
      for line in errors:
        logger.warning(f"{line}; using step {step}")
      return step, found
  raise DamagedFile(f"none of {len(steps)} checkpoints is intact: {errors[0]}")


def _open_read_only(folder: str) -> Any:
  ocp = import_orbax()
  options = ocp.CheckpointManagerOptions(read_only=True)
  return ocp.CheckpointManager(absolute(folder), options=options)
