"""Exit codes, and how exceptions of the library become them."""

import functools
import sys
import traceback
from collections.abc import Callable, Sequence

from ldm_jax.cli.streams.closed_streams import tolerate_closed_streams
from ldm_jax.files.printable import printable

USAGE, NUMERICS, DATA, WEIGHTS, IO, INTERNAL = 2, 3, 4, 5, 6, 70

Main = Callable[[Sequence[str]], int]


class CommandError(Exception):
  """Ends a command with one line on stderr and an exit code."""

  def __init__(self, line: str, code: int):
    super().__init__(line)
    self.code = code


def code_of(error: Exception) -> int | None:
  """The exit code of an exception of the library; None for any other."""
  from ldm_jax import errors

  codes = {
    errors.NonFiniteWeights: NUMERICS,
    errors.NonFinite: NUMERICS,
    errors.WeightsError: WEIGHTS,
    errors.DamagedFile: WEIGHTS,
    errors.DataError: DATA,
    errors.ImageError: DATA,
    errors.SaveFailed: IO,
    errors.LdmJaxError: USAGE,  # ConfigError, TooLarge
  }
  return next((c for kind, c in codes.items() if isinstance(error, kind)), None)


def command(main: Main) -> Main:
  """`main`, whose library exceptions become a `CommandError` with its code."""

  @functools.wraps(main)
  def wrapped(arguments: Sequence[str]) -> int:
    try:
      return main(arguments)
    except CommandError:
      raise
    except Exception as error:
      code = code_of(error)
      if code is None:
        raise
      raise CommandError(str(error), code) from error

  return wrapped


def exit_status(main: Main, arguments: Sequence[str]) -> int:
  """Runs a command and returns its exit code; errors are one line on stderr."""
  try:
    code = command(main)(arguments)
    sys.stdout.flush()
  except CommandError as error:
    return _print_error(str(error), error.code)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except OSError as error:
    return _print_error(str(error), IO)
  except Exception:
    sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
    return INTERNAL
  return code


def run_command(main: Main, arguments: Sequence[str] | None = None) -> None:
  """Runs a command and ends the process with its exit code."""
  tolerate_closed_streams()
  code = exit_status(main, sys.argv[1:] if arguments is None else arguments)
  if "jax" in sys.modules:
    from ldm_jax.runtime.devices import processes

    processes.exit_if_failed(code)
  sys.exit(code)


def _print_error(line: str, code: int) -> int:
  """Prints one line; control characters cannot reach the terminal."""
  print(f"error: {printable(line)}", file=sys.stderr)
  return code
