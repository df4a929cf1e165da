"""Says what a model or one of our pictures is.

  python -m ldm_jax.cli.info FILE

FILE is a run, a diffusers folder (or one network's), a single file, or a PNG
that sample.py wrote. Prints one JSON object: family, parameters, prediction
and format of a model, the settings of a picture.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of info."""
  flags = Parser("python -m ldm_jax.cli.info", __doc__)
  flags.add_argument("path", metavar="FILE")
  flags.add_argument("--variant", help="of the weights' files, such as fp16")
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and tells; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.pretrained import inspect  # brings jax

  return inspect.inspect(flags)


if __name__ == "__main__":
  run_command(main)
