"""States on disk, by Orbax: asynchronous, atomic, on any mesh."""

import dataclasses
import hashlib
import logging
import os
from typing import Any, Literal

import jax

from ldm_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Keeping:
  """Which checkpoints are written, and which stay.

  Attributes:
    every: steps between checkpoints; the last step always has one.
    keep: how many of the latest stay.
    keep_every: steps between those that stay for good, or None.
    best: the validation metric whose best checkpoint stays too, or None.
    best_is: which end of the metric is the best.
  """

  every: int = 1000
  keep: int = 2
  keep_every: int | None = None
  best: str | None = None
  best_is: Literal["min", "max"] = "min"

  def __post_init__(self):
    if self.every < 1 or self.keep < 1:
      raise ValueError(
        "checkpoints need every >= 1 and keep >= 1, got "
        f"every={self.every} keep={self.keep}"
      )

  def policy(self) -> Any:
    """Orbax's preservation policy; `max_to_keep` would drop the newest."""
    from orbax.checkpoint.checkpoint_managers import (
      preservation_policy as preserve,
    )

    policies = [preserve.LatestN(n=self.keep)]
    if self.keep_every is not None:
      policies.append(preserve.EveryNSteps(interval_steps=self.keep_every))
    if self.best is not None:
      policies.append(
        preserve.BestN(
          get_metric_fn=lambda metrics: metrics[self.best],
          reverse=self.best_is == "min",
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    return preserve.AnyPreservationPolicy(policies)


class Checkpoints:
  """The checkpoints of one run, one per step."""

  def __init__(self, folder: str, keeping: Keeping = Keeping()):
    ocp = _orbax()

    self._orbax = ocp
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keeping.policy(),
      cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager(_absolute(folder), options=options)

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
    """Starts writing `state`; returns once it is copied off the devices."""
    self._manager.save(
      step,
      args=self._orbax.args.Composite(
        state=self._orbax.args.StandardSave(state)
      ),
      metrics=metrics,
      force=True,
    )

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The state of `step`, bit for bit, placed as `shardings` says."""
    target = jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      abstract,
      shardings,
    )
    restored = self._manager.restore(
      step,
      args=self._orbax.args.Composite(
        state=self._orbax.args.StandardRestore(target)
      ),
    )
    return restored["state"]

  def wait(self) -> None:
    """Returns when everything is on disk; raises what went wrong."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go."""
    self._manager.close()


def latest_step(folder: str) -> int | None:
  """The newest complete step under `folder`, or None; nothing is touched."""
  if not os.path.isdir(folder):
    return None
  with _reading(folder) as manager:
    return manager.latest_step()


def restore_part(folder: str, step: int, target: Any) -> Any:
  """Those subtrees of a checkpointed state that `target` names.

  Args:
    target: a tree of `ShapeDtypeStruct` with shardings.
  """
  ocp = _orbax()

  with _reading(folder) as manager:
    arguments = ocp.args.PyTreeRestore(
      item=target,
      restore_args=ocp.checkpoint_utils.construct_restore_args(target),
      partial_restore=True,
    )
    return manager.restore(step, args=ocp.args.Composite(state=arguments))[
      "state"
    ]


def _reading(folder: str) -> Any:
  ocp = _orbax()

  options = ocp.CheckpointManagerOptions(read_only=True)
  return ocp.CheckpointManager(_absolute(folder), options=options)


def save_tree(folder: str, tree: Any) -> None:
  """Writes one tree of arrays, once."""
  ocp = _orbax()

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(_absolute(folder), tree)


def load_tree(folder: str, target: Any) -> Any:
  """Reads what `save_tree` wrote, placed as `target` says."""
  ocp = _orbax()

  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(_absolute(folder), target)


def digest(tree: Any) -> str:
  """SHA-256 over every leaf's path, format, shape and bytes, in hex."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = processes.gather(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def _orbax() -> Any:
  """The library, late because it is slow, and without its routine warnings.

  Several processes share the writing of what all hold. One has nobody to share
  with, and would compile a slice of every shape for it.
  """
  import orbax.checkpoint as ocp

  logging.getLogger("absl").setLevel(logging.ERROR)
  if jax.process_count() == 1:
    alone = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, alone, override=True)
  return ocp


def _absolute(folder: str) -> str:
  """Orbax fails late, and in a thread, on a relative path."""
  return folder if "://" in folder else os.path.abspath(folder)
