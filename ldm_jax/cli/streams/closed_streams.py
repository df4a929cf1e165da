"""Output to a reader that has ended never ends a command."""

import io
import os
import sys
from typing import Any


class _Tolerant(io.TextIOWrapper):
  """Text to a file descriptor; once nobody reads it, text is dropped.

  Other errors of stdout, as of a full disk, are raised; those of stderr are
  dropped too, since there is nowhere to report them.
  """

  is_for_messages = False

  def write(self, text: str) -> int:
    """Writes a text, or drops it."""
    return self._guarded(super().write, text) or len(text)

  def flush(self) -> None:
    """Flushes, or drops what is left."""
    self._guarded(super().flush)

  def _guarded(self, call: Any, *arguments: Any) -> Any:
    try:
      return call(*arguments)
    except BrokenPipeError:
      self._drop()
    except OSError:
      if not self.is_for_messages:
        raise
      self._drop()
    return None

  def _drop(self) -> None:
    """From now on, and at the end of the process, text goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, self.fileno())
    os.close(null)


def tolerate_closed_streams() -> None:
  """Lets a command continue when its stdout or stderr has no reader.

  Descriptors that are closed are opened on /dev/null first, or the next file
  that is opened would become stdout or stderr.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
  sys.stdout = _tolerant(sys.stdout, 1)
  sys.stderr = _tolerant(sys.stderr, 2)


def _tolerant(stream: Any, number: int) -> Any:
  """The stream, tolerant; unchanged if it is not the process's own."""
  if stream is None:
    stream = open(number, "w", closefd=False)  # noqa: SIM115, until the end
  is_own = type(stream) is io.TextIOWrapper and stream.fileno() == number
  if not is_own:
    return stream
  is_line_buffered = stream.line_buffering or number == 2
  tolerant = _Tolerant(
    io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
    stream.encoding,
    stream.errors,
    line_buffering=is_line_buffered,
  )
  tolerant.is_for_messages = number == 2
  return tolerant
