"""Checkpoints of a run that goes on where a disk refuses some of them."""

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

TRIES = 3  # failures in a row that end a run
SPARE = 1.2  # of what checkpoints will take


class CheckpointSaver:
  """Saves, and notices within a step that a save has failed.

  Older checkpoints make room then, and the state of the time is saved instead.
  If that fails too, the next regular one is tried; three failures in a row are
  one too many, and so is one where several processes would have to agree.
  """

  def __init__(self, checkpoints: Checkpoints, journal: MetricWriter):
    self._checkpoints, self._journal = checkpoints, journal
    self._failed = self._in_row = 0

  def save(
    self, step: int, state: Any, metrics: dict[str, float] | None = None
  ) -> None:
    """Starts saving, as `Checkpoints.save`.

    Raises:
      SaveFailed: too often.
    """
    try:
      self._checkpoints.save(step, state, metrics)
    except SaveFailed as error:
      self._refused(step, error)
      if self._in_row == 1:
        self.save(step, state, metrics)

  def check(self, step: int, state: Any) -> None:
    """Saves this state if the last one could not be.

    Raises:
      SaveFailed: too often.
    """
    was_saving = self._checkpoints.is_saving
    try:
      self._checkpoints.check()
    except SaveFailed as error:
      self._refused(step, error)
      if self._in_row == 1:
        self.save(step, state)
    else:
      if was_saving and not self._checkpoints.is_saving:
        self._in_row = 0

  def finish(self, step: int, state: Any) -> None:
    """Returns when the last state is on disk.

    Raises:
      SaveFailed: it could not be written.
    """
    try:
      self._checkpoints.wait()
    except SaveFailed as error:
      self._refused(step, error)
    if self._checkpoints.latest != step:
      self._checkpoints.save(step, state)
      self._checkpoints.wait()

  def _refused(self, step: int, error: SaveFailed) -> None:
    self._failed += 1
    self._in_row += 1
    self._journal.write(step, {"failed_saves": float(self._failed)})
    if self._in_row >= TRIES or jax.process_count() > 1:
      raise error
    logger.warning(f"{error}; older checkpoints make room")
    self._checkpoints.prune()


def check_disk_space(folder: str, shapes: Any, keep: int) -> None:
  """Raises OSError if a disk has no room for `keep` states and one more.

  Those that lie there already need none.
  """
  size = sum(
    int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )
  there = [n for n in os.listdir(folder) if n.isdigit()]
  needed = SPARE * size * max(1, keep + 1 - len(there))
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise OSError(
      f"{folder} has {free / 1e9:.2f} GB left, but {keep} checkpoints of "
      f"{size / 1e9:.2f} GB and one that is being written need "
      f"{needed / 1e9:.2f}; make room, lower checkpoints.keep, or choose "
      "another --workdir"
    )
