"""Behind verify: what lies in a run folder against its digests."""

import json
import os

from ldm_jax.cli.exit_codes import WEIGHTS, usage_errors
from ldm_jax.errors import ConfigError
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing import checkpoint, tree_io
from ldm_jax.runtime.checkpointing.checksums import combined_checksum


def verify(folder: str) -> int:
  """Prints a line of JSON per step, and one of what is frozen; returns the
  exit code."""
  with usage_errors():
    Run.open(folder)
    steps = os.path.join(folder, "checkpoints")
    if checkpoint.latest_step(steps) is None:
      raise ConfigError(f"{folder} has no checkpoint yet")
  is_whole = True
  for step, wrong, leaves in checkpoint.verify_checkpoints(steps):
    is_whole &= wrong is None
    tell({"step": step, "digest": combined_checksum(leaves)}, wrong)
  wrong, leaves = tree_io.verify_tree(os.path.join(folder, "frozen"), "frozen")
  tell({"frozen": True, "digest": combined_checksum(leaves)}, wrong)
  return 0 if is_whole and wrong is None else WEIGHTS


def tell(what: dict, wrong: str | None) -> None:
  """One line of JSON."""
  told = what | {"whole": wrong is None}
  print(json.dumps(told | ({"wrong": wrong} if wrong else {})))
