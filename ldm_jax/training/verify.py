"""verify(): the checkpoints of a run compared with their recorded digests."""

import dataclasses
import os

from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import checked
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing import read_checkpoints, tree_io
from ldm_jax.runtime.checkpointing.checksums import combined_checksum


@dataclasses.dataclass(frozen=True)
class VerifiedTree:
  """One stored tree of arrays.

  Attributes:
    step: of a checkpoint; None for the frozen parameters.
    digest: SHA-256 over the digests of all arrays, as they were saved.
    wrong: what differs from the digests, in one line, or None.
  """

  step: int | None
  digest: str
  wrong: str | None

  @property
  def is_whole(self) -> bool:
    """Whether the arrays are what was saved."""
    return self.wrong is None


@dataclasses.dataclass(frozen=True)
class VerifyResult:
  """Every checkpoint of a run, oldest first, and its frozen parameters."""

  folder: str
  checkpoints: tuple[VerifiedTree, ...]
  frozen: VerifiedTree

  @property
  def is_whole(self) -> bool:
    """Whether all of them are what was saved."""
    return all(tree.is_whole for tree in (*self.checkpoints, self.frozen))


@checked
def verify(folder: str, trust: tuple[str, ...] = ()) -> VerifyResult:
  """Reads every checkpoint of the run in `folder`.

  Args:
    trust: see `Run.open`.

  Raises:
    ConfigError: the folder holds no run, or no checkpoint yet.
  """
  Run.open(folder, trust)
  steps = os.path.join(folder, "checkpoints")
  if read_checkpoints.latest_step(steps) is None:
    raise ConfigError(f"{folder} has no checkpoint yet")
  found = tuple(
    VerifiedTree(step, combined_checksum(leaves), wrong)
    for step, wrong, leaves in read_checkpoints.verify_checkpoints(steps)
  )
  wrong, leaves = tree_io.verify_tree(os.path.join(folder, "frozen"), "frozen")
  return VerifyResult(
    folder, found, VerifiedTree(None, combined_checksum(leaves), wrong)
  )
