"""Checks that every checkpoint of a run is what was saved.

  ldm-jax verify runs/X

Prints one line of JSON per step: the digest of its state, whether it is intact
("whole") and, if not, what differs. Exits with 5 if any is damaged.
"""

import json
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import WEIGHTS, command, run_command
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of verify."""
  flags = Parser("ldm-jax verify", __doc__)
  flags.add_argument("run", metavar="RUN", help="a run folder")
  flags.add_argument("--trust", action="append", default=[], metavar="PACKAGE")
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags and verifies; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.training.verify import verify  # imports jax

  result = verify(flags.run, tuple(flags.trust))
  for tree in (*result.checkpoints, result.frozen):
    name = {"frozen": True} if tree.step is None else {"step": tree.step}
    line = name | {"digest": tree.digest, "whole": tree.is_whole}
    print(json.dumps(line | ({"wrong": tree.wrong} if tree.wrong else {})))
  return 0 if result.is_whole else WEIGHTS


if __name__ == "__main__":
  run_command(main)
