"""Says whether training or sampling fits on a machine that is not here.

  python -m ldm_jax.cli.plan --config=configs/sd/sd1.py \\
    --first_stage=configs/ldm/kl_f8.py --topology=v5e:4x4 --batch=128

compiles the real step for that TPU (pip install libtpu) and prints what every
device needs, what is sent between devices, and how many operations a step has.
Without --topology it does so for the devices that are here. Full-size models
take many minutes to compile; nothing is computed and no data is read.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import USAGE, CommandError, run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of plan."""
  flags = Parser("python -m ldm_jax.cli.plan", __doc__)
  add = flags.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE",
    help="an experiment; then --config.FIELD[.FIELD...]=VALUE sets fields",
  )
  add(
    "--first_stage",
    metavar="CONFIG|RUN",
    help="of stage two: a config or a run of stage one",
  )
  add(
    "--topology",
    metavar="NAME",
    help="of a TPU, such as v5e:4x4 (default: the devices that are here)",
  )
  add("--slices", type=int, default=1, help="of that TPU (default 1)")
  add("--batch", type=int, help="images over all devices (default: config's)")
  add(
    "--sample",
    type=int,
    metavar="STEPS",
    help="a guided sampler of so many steps (of DDIM) in place of training",
  )
  add(
    "--largest",
    action="store_true",
    help="compile for twice the batch too, and estimate the largest that fits",
  )
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and plans; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  if flags.sample is not None and flags.sample < 1:
    raise CommandError(
      f"--sample takes a number of steps, got {flags.sample}", USAGE
    )
  from ldm_jax.planning import plan  # brings jax

  return plan.plan(flags, overrides)


if __name__ == "__main__":
  run_command(main)
