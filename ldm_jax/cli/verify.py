"""Says of every checkpoint of a run whether it is what was saved.

  python -m ldm_jax.cli.verify runs/X

One line of JSON per step: the digest of its state, whether it is whole, and if
not, what failed. Exits with 5 if any is not whole.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of verify."""
  flags = Parser("python -m ldm_jax.cli.verify", __doc__)
  flags.add_argument("run", metavar="RUN", help="a run folder")
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and verifies; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.training import verify  # brings jax

  return verify.verify(flags.run)


if __name__ == "__main__":
  run_command(main)
