"""Helpers for log records; handlers and levels are the application's."""

import contextlib
import logging
import time
from collections.abc import Iterator


@contextlib.contextmanager
def log_duration(action: str) -> Iterator[None]:
  """Logs `action` when it begins, and the seconds it took when it ends."""
  logger = logging.getLogger(__name__)
  begin = time.monotonic()
  logger.info("%s ...", action)
  yield
  logger.info("%s: %.1f s", action, time.monotonic() - begin)


@contextlib.contextmanager
def warn_on_os_error() -> Iterator[None]:
  """An OSError of the block is logged as a warning and suppressed."""
  try:
    yield
  except OSError as error:
    logging.getLogger(__name__).warning("%s", error)
