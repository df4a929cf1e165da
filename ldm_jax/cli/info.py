"""Describes a model or a generated image as one JSON object.

  ldm-jax info PATH

PATH is a run, a diffusers folder (or one network's), a single file,
owner/model of the hub, or a PNG that ldm-jax sample wrote. Prints family,
parameters, prediction type and number format of a model, or the settings that
generated an image.
"""

import json
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of info."""
  flags = Parser("ldm-jax info", __doc__)
  flags.add_argument("path", metavar="PATH")
  flags.add_argument("--variant", help="of the weight files, such as fp16")
  flags.add_argument(
    "--trust",
    action="append",
    default=[],
    metavar="PACKAGE",
    help="import this package's classes if a run names them; may be repeated",
  )
  flags.add_argument(
    "--weight_dtype",
    choices=("int8", "float8_e4m3fn"),
    help="read a model's matrices, and add the error of each in this format",
  )
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Prints what a path holds; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.pretrained.inspect import inspect  # imports jax

  found = inspect(flags.path, flags.variant, flags.trust, flags.weight_dtype)
  print(json.dumps(found, indent=1))
  return 0


if __name__ == "__main__":
  run_command(main)
