"""Log records of the package on stderr: one formatter, process 0 only."""

import logging
import sys


class _Formatter(logging.Formatter):
  """The bare message; warnings and errors begin with their level."""

  def format(self, record: logging.LogRecord) -> str:
    text = super().format(record)
    if record.levelno == logging.INFO:
      return text
    return f"{record.levelname.lower()}: {text}"


class _Handler(logging.StreamHandler):
  """Writes to whatever sys.stderr is at the time of the record."""

  def emit(self, record: logging.LogRecord) -> None:
    self.setStream(sys.stderr)
    super().emit(record)


def _is_first_process(record: logging.LogRecord) -> bool:
  """False in processes after the first; jax is asked only if it is there."""
  processes = sys.modules.get("ldm_jax.runtime.devices.processes")
  return processes is None or processes.is_first()


def configure(verbosity: int = 0) -> None:
  """Sends records of `ldm_jax` to stderr.

  Args:
    verbosity: -1 warnings only, 0 progress too, 1 debugging messages too.
  """
  levels = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}
  logger = logging.getLogger("ldm_jax")
  logger.setLevel(levels[verbosity])
  if not any(isinstance(h, _Handler) for h in logger.handlers):
    handler = _Handler()
    handler.setFormatter(_Formatter())
    handler.addFilter(_is_first_process)
    logger.addHandler(handler)
