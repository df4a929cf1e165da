"""What every command shares: flags that forgive spelling, and exit codes."""

import argparse
import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

USAGE, NUMERICS, DATA, WEIGHTS, IO, INTERNAL = 2, 3, 4, 5, 6, 70


class CommandError(Exception):
  """Ends a command with one line on stderr and an exit code."""

  def __init__(self, line: str, code: int):
    super().__init__(line)
    self.code = code


class Parser(argparse.ArgumentParser):
  """argparse with one-line errors; dashes and underscores are the same."""

  def __init__(self, prog: str, doc: str):
    what, _, more = doc.partition("\n\n")
    super().__init__(
      prog,
      description=what,
      epilog=more,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )

  def error(self, message: str) -> None:
    """Exits with 2 and one line; help is a flag away."""
    raise CommandError(f"{self.prog}: {message} (see --help)", USAGE)

  def read(
    self, arguments: Sequence[str], prefix: str | None = None
  ) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses; flags that begin with --`prefix`. come back by their path."""
    ours, paths = [], {}
    for argument in arguments:
      name, equals, value = argument.partition("=")
      if prefix and name.startswith(f"--{prefix}."):
        if not equals:
          self.error(f"{name} needs a value: {name}=VALUE")
        paths[name.removeprefix(f"--{prefix}.").replace("-", "_")] = value
      elif name.startswith("--"):
        ours.append("--" + name[2:].replace("-", "_") + equals + value)
      else:
        ours.append(argument)
    known, unknown = self.parse_known_args(ours)
    if unknown:
      self.error(self._unknown(unknown[0].partition("=")[0]))
    return known, paths

  def _unknown(self, name: str) -> str:
    close = difflib.get_close_matches(name, self._option_string_actions, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown argument {name}{hint}"


@contextlib.contextmanager
def usage_errors(picture: int = USAGE) -> Iterator[None]:
  """Whatever a value inside is refused for was the user's to say.

  Args:
    picture: the exit code where one cannot be read.
  """
  from ldm_jax.errors import (
    DamagedFile,
    DataError,
    ImageError,
    NonFiniteWeights,
    WeightsError,
  )

  try:
    yield
  except NonFiniteWeights as error:
    raise CommandError(str(error), NUMERICS) from error
  except (WeightsError, DamagedFile) as error:
    raise CommandError(str(error), WEIGHTS) from error
  except DataError as error:
    raise CommandError(str(error), DATA) from error
  except ImageError as error:
    raise CommandError(str(error), picture) from error
  except ValueError as error:
    raise CommandError(str(error), USAGE) from error


def exit_status(
  main: Callable[[Sequence[str]], int], arguments: Sequence[str]
) -> int:
  """Runs a command; what ends it early is told, in one line if it can be."""
  # A reader that went away (| head) is no error of ours.
  try:
    code = main(arguments)
    sys.stdout.flush()
  except CommandError as stop:
    return _told(str(stop), stop.code)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except OSError as error:
    return _told(str(error), IO)
  except Exception as error:
    from ldm_jax.errors import NonFinite

    if isinstance(error, NonFinite):
      return _told(str(error), NUMERICS)
    traceback.print_exc()
    return INTERNAL
  return code


def run_command(main: Callable[[Sequence[str]], int]) -> None:
  """Runs a command and leaves the process with its exit code."""
  code = exit_status(main, sys.argv[1:])
  if "jax" in sys.modules:
    from ldm_jax.runtime.devices import processes

    processes.leave(code)
  sys.exit(code)


def _told(line: str, code: int) -> int:
  """Says what was wrong, in a line that moves no cursor."""
  kept = "".join(c if c.isprintable() else " " for c in line)
  print(f"error: {kept}", file=sys.stderr)
  return code
