"""Trains one experiment of either stage, or resumes its run.

  ldm-jax train --config=configs/X.py --workdir=runs/X
  ldm-jax train --config=configs/Y.py --workdir=runs/Y \\
      --config.first_stage=runs/X --config.task.optimizer.rate=1e-4

Any field of the config can be set by its dotted path; --help-config lists them.
A workdir that holds a run of the same experiment is resumed.
"""

import json
import logging
import shlex
import sys
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import USAGE, CommandError, command, run_command
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.flag_notation import steps_range
from ldm_jax.cli.flags.parser import Parser

logger = logging.getLogger(__name__)

SWITCHES = {
  "--help_config": "list every field of the config and exit",
  "--allow_changed_data": "resume although the data has changed",
  "--override": "resume with another learning rate, batch, ...; it is recorded",
}


def parser() -> Parser:
  """The flags of train."""
  flags = Parser("ldm-jax train", __doc__)
  add = flags.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE",
    help="a Python file whose get_config() returns an Experiment, or "
    "a name, such as sd/sd1; --config.FIELD[.FIELD...]=VALUE sets a field",
  )
  add("--workdir", metavar="DIR", help="the run folder")
  for name, text in SWITCHES.items():
    add(name, action="store_true", help=text)
  add(
    "--profile",
    metavar="FROM:TO",
    type=steps_range,
    help="trace these steps into DIR/profile, for TensorBoard or Perfetto",
  )
  add(
    "--tracker",
    action="append",
    default=[],
    metavar="NAME",
    help="log to wandb, trackio or mlflow too; may be repeated",
  )
  add(
    "--trust",
    action="append",
    default=[],
    metavar="PACKAGE",
    help="import this package's classes that the run or its first stage names",
  )
  add_cache_flag(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags and trains; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  if flags.help_config:
    return _print_fields(flags.config, overrides)
  if flags.workdir is None:
    raise CommandError("ldm-jax train: --workdir is required", USAGE)
  use_cache(flags)
  from ldm_jax.runtime.devices import processes
  from ldm_jax.runtime.signals import exit_code
  from ldm_jax.training.train import train

  result = train(
    flags.config,
    flags.workdir,
    overrides=overrides,
    profile=flags.profile,
    trust=flags.trust,
    allow_changed_data=flags.allow_changed_data,
    override=flags.override,
    trackers=flags.tracker,
  )
  if result.interrupted:
    logger.info(f"resume with: {_command_line()}")
  if processes.is_first():
    line = {"workdir": result.workdir} | dict(result.metrics)
    if result.bad_samples:
      line["bad_samples"] = result.bad_samples
    print(json.dumps(line))
  return exit_code(result.interrupted)


def _command_line() -> str:
  """This process's command, to run again."""
  script, *rest = sys.argv
  if script.endswith("__main__.py"):
    return f"python -m ldm_jax {shlex.join(rest)}"
  return f"python {shlex.join(sys.argv)}"


def _print_fields(path: str, overrides: dict[str, str]) -> int:
  from ldm_jax import config
  from ldm_jax.config_help import field_rows

  for row in field_rows(config.resolve(path, overrides)):
    print(row)
  return 0


if __name__ == "__main__":
  run_command(main)
