"""Follows runs on a web page while they train, or after.

  ldm-jax watch runs/X
  ldm-jax watch runs/X runs/Y --port 8000

Shows losses, learning rate, images per second, previews by step, skipped steps,
checkpoints and configs; of several runs how their configs differ. Reads the
files of the runs and writes nothing. Prints its address once it answers; Ctrl-C
ends it. Needs the extra web: pip install 'ldm_jax[web]'.
"""

import functools
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import USAGE, CommandError, command, run_command
from ldm_jax.cli.flags.flag_notation import add_flags
from ldm_jax.cli.flags.parser import Parser

SERVER = """
--host: ADDRESS
  to bind to; 0.0.0.0 is every network of the machine (default: 127.0.0.1)
--port: int
  0 takes a free one (default: 7861)
--every: float
  seconds between two looks at the files (default: 5)
"""


def parser() -> Parser:
  """The flags of watch."""
  flags = Parser("ldm-jax watch", __doc__)
  flags.add_argument("runs", metavar="RUN", nargs="+", help="a run folder")
  add_flags(flags, "server", SERVER)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags and serves the page; returns the exit code."""
  flags, _ = parser().read(arguments)
  try:
    from ldm_jax.serving.watch import WatchRequest, watch
  except ImportError as error:
    text = f"watch needs the extra web ({error}); pip install 'ldm_jax[web]'"
    raise CommandError(text, USAGE) from error
  names = "host", "port", "every"
  given = {k: v for k in names if (v := getattr(flags, k)) is not None}
  request = WatchRequest(runs=tuple(flags.runs), **given)
  watch(request, functools.partial(print, flush=True))
  return 0


if __name__ == "__main__":
  run_command(main)
