"""Checkpointing that tolerates failed writes, such as with a full disk."""

import logging
import os
import shutil
from typing import Any

import jax
import numpy as np

from ldm_jax.errors import SaveFailed
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a row; the last one ends the run
MARGIN = 1.2  # of the bytes that checkpoints are expected to take


class CheckpointSaver:
  """Saves checkpoints, and detects a failed save within a step.

  On a failure older checkpoints are deleted and the current state is saved
  instead. If that fails too, the next regular save is the next attempt. The
  third failure in a row is raised, and any failure with several processes,
  which would have to agree on the retry.
  """

  def __init__(self, checkpoints: Checkpoints, metric_writer: MetricWriter):
    self._checkpoints, self._metric_writer = checkpoints, metric_writer
    self._failures = self._failures_in_row = 0

  def save(
    self, step: int, state: Any, metrics: dict[str, float] | None = None
  ) -> None:
    """Starts saving, as `Checkpoints.save`.

    Raises:
      SaveFailed: too many failures.
    """
    try:
      self._checkpoints.save(step, state, metrics)
    except SaveFailed as error:
      self._handle_failure(step, error)
      if self._failures_in_row == 1:
        self.save(step, state, metrics)

  def check(self, step: int, state: Any) -> None:
    """Saves this state if the last save has failed; called after each step.

    Raises:
      SaveFailed: too many failures.
    """
    was_saving = self._checkpoints.is_saving
    try:
      self._checkpoints.check()
    except SaveFailed as error:
      self._handle_failure(step, error)
      if self._failures_in_row == 1:
        self.save(step, state)
    else:
      if was_saving and not self._checkpoints.is_saving:
        self._failures_in_row = 0

  def finish(self, step: int, state: Any) -> None:
    """Returns when the last state is on disk.

    Raises:
      SaveFailed: it could not be written.
    """
    try:
      self._checkpoints.wait()
    except SaveFailed as error:
      self._handle_failure(step, error)
    if self._checkpoints.latest != step:
      self._checkpoints.save(step, state)
      self._checkpoints.wait()

  def _handle_failure(self, step: int, error: SaveFailed) -> None:
    self._failures += 1
    self._failures_in_row += 1
    self._metric_writer.write(step, {"failed_saves": float(self._failures)})
    if self._failures_in_row >= MAX_FAILURES or jax.process_count() > 1:
      raise error
    logger.warning(f"{error}; deleting older checkpoints to free space")
    self._checkpoints.prune()


def check_disk_space(folder: str, shapes: Any, keep: int) -> None:
  """Raises OSError if the disk cannot hold `keep` states and one more.

  Checkpoints that exist already are counted among them.
  """
  size = sum(
    int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )
  existing = [n for n in os.listdir(folder) if n.isdigit()]
  needed = MARGIN * size * max(1, keep + 1 - len(existing))
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise OSError(
      f"{folder} has {free / 1e9:.2f} GB free, but {keep} checkpoints of "
      f"{size / 1e9:.2f} GB and one that is being written need "
      f"{needed / 1e9:.2f}; free some space, lower checkpoints.keep, or choose "
      "another --workdir"
    )
