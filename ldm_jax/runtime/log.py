"""Helpers for log records; handlers and levels are the application's."""

import contextlib
import logging
import time
from collections.abc import Iterator


@contextlib.contextmanager
def log_duration(what: str) -> Iterator[None]:
  """Logs `what` when it begins, and the seconds it took when it ends."""
  logger = logging.getLogger(__name__)
  begin = time.monotonic()
  logger.info("%s ...", what)
  yield
  logger.info("%s: %.1f s", what, time.monotonic() - begin)


@contextlib.contextmanager
def warn_on_os_error() -> Iterator[None]:
  """Logs an OSError of the block as a warning, and swallows it."""
  try:
    yield
  except OSError as error:
    logging.getLogger(__name__).warning("%s", error)
