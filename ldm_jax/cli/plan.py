"""Plans training or sampling: memory and cost on present or absent devices.

  ldm-jax plan --config=sd/sd1 --first_stage=ldm/kl_f8 --topology=v5e:4x4 \\
    --batch=128

compiles the real step for that TPU (pip install libtpu) and prints the memory
each device needs, the collectives between devices, and the operations of a
step. Without --topology it plans for the present devices. Full-size models take
many minutes to compile; nothing is computed and no data is read.
"""

import json
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of plan."""
  flags = Parser("ldm-jax plan", __doc__)
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
    help="of a denoiser: a config or a run of an autoencoder",
  )
  add(
    "--topology",
    metavar="NAME",
    help="of a TPU, such as v5e:4x4 (default: the present devices)",
  )
  add("--slices", type=int, default=1, help="of that TPU (default 1)")
  add("--batch", type=int, help="images over all devices (default: config's)")
  add(
    "--sample",
    dest="sampler_steps",
    type=int,
    metavar="STEPS",
    help="plan a guided DDIM sampler with this many steps instead of training",
  )
  add(
    "--largest",
    action="store_true",
    help="estimate the largest batch that fits; compiles once or twice more",
  )
  add(
    "--prepared",
    choices=("latents", "texts"),
    help="plan a step on what `ldm-jax prepare` stores (texts: latents, too)",
  )
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags, plans and prints; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  from ldm_jax.planning.plan import plan  # imports jax
  from ldm_jax.planning.request import PlanRequest
  from ldm_jax.planning.table import plan_table

  fields = vars(flags)
  fields.pop("verbose"), fields.pop("quiet")
  result = plan(PlanRequest(overrides=overrides, **fields))
  print(plan_table(result))
  print(json.dumps(result.to_json()))
  return 0


if __name__ == "__main__":
  run_command(main)
