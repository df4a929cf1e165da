"""Trains one experiment, either stage.

  python train.py --config=configs/X.py --workdir=runs/X
  python train.py --config=configs/Y.py --workdir=runs/Y \\
      --config.first_stage=runs/X --config.task.optimizer.rate=1e-4

Any field of the config can be set on the command line by its dotted path. A
workdir that holds a run of the same experiment is gone on with.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of train.py."""
  flags = Parser("train.py", __doc__)
  flags.add_argument(
    "--config",
    required=True,
    metavar="FILE",
    help="a Python file whose get_config() returns an Experiment; then "
    "--config.FIELD[.FIELD...]=VALUE sets fields of it",
  )
  flags.add_argument(
    "--workdir", required=True, metavar="DIR", help="the run folder"
  )
  flags.add_argument(
    "--profile",
    metavar="FROM:TO",
    help="trace these steps into DIR/profile, for TensorBoard or Perfetto",
  )
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and trains; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  from ldm_jax.training import train  # brings jax

  return train.train(flags.config, flags.workdir, overrides, flags.profile)


if __name__ == "__main__":
  run_command(main)
