"""Logging of the command line: one formatter, stderr, process 0 only."""

import logging
import sys
import warnings

from ldm_jax.files.printable import printable

_format_warning = warnings.formatwarning


def _printable_warning(
  message: Warning | str,
  category: type[Warning],
  filename: str,
  lineno: int,
  line: str | None = None,
) -> str:
  """The text of `warnings.warn`, without control characters."""
  text = printable(str(message))
  return printable(
    _format_warning(text, category, filename, lineno, line), keep="\n\t"
  )


class _Formatter(logging.Formatter):
  """The bare message; all levels but INFO put their name before it.

  Control characters, of file names, configs or captions, become escapes, and
  a message of this package is one line, but for a report of the watchdog.
  """

  def format(self, record: logging.LogRecord) -> str:
    is_own = record.name.startswith("ldm_jax")
    is_line = is_own and not vars(record).get("all_processes")
    copy = logging.makeLogRecord(vars(record))
    copy.msg = printable(record.getMessage(), keep="" if is_line else "\n\t")
    copy.args = None
    text = printable(super().format(copy), keep="\n\t")
    if record.levelno == logging.INFO:
      return text
    return f"{record.levelname.lower()}: {text}"


class _Handler(logging.Handler):
  """Writes to the current sys.stderr, above any progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    try:
      line = self.format(record)
      # Nothing is shown before its import.
      progress = sys.modules.get("ldm_jax.runtime.monitoring.progress")
      if progress is None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
      else:  # above the lines of progress
        progress.write_line(line)
    except Exception:
      self.handleError(record)


def _is_shown(record: logging.LogRecord) -> bool:
  """True on process 0, and for records with `extra={"all_processes": True}`.

  jax is asked for the process only if it is imported already.
  """
  if vars(record).get("all_processes"):
    return True
  processes = sys.modules.get("ldm_jax.runtime.devices.processes")
  return processes is None or processes.is_first()


def configure(verbosity: int = 0) -> None:
  """Sends records of `ldm_jax` to stderr; may be called again.

  Messages of `warnings.warn` lose their control characters too.

  Args:
    verbosity: -1 warnings only, 0 progress too, 1 debugging messages too.
  """
  levels = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}
  logger = logging.getLogger("ldm_jax")
  logger.setLevel(levels[verbosity])
  if not any(isinstance(h, _Handler) for h in logger.handlers):
    handler = _Handler()
    handler.setFormatter(_Formatter())
    handler.addFilter(_is_shown)
    logger.addHandler(handler)
  warnings.formatwarning = _printable_warning
  root = logging.getLogger()
  if not root.handlers:  # else a library's basicConfig would repeat our records
    other = _Handler(logging.WARNING)
    other.setFormatter(_Formatter())
    other.addFilter(lambda record: not record.name.startswith("ldm_jax"))
    root.addHandler(other)
