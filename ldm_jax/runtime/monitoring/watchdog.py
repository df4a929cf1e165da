"""Says where a run stands when nothing moves any more."""

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator

INPUT, DEVICES, DISK = "the input", "the devices", "devices and disk"
TIMES = 3  # median steps without news are too many
HUNG = 70  # exit code


class Watchdog:
  """Shows every thread's stack if the input or the devices keep a run waiting.

  Within `with`, a thread looks whether what is waited for has come within
  `least` seconds, or three median steps if that is longer. Nothing is watched
  while nothing is waited for, as in a compilation.

  Args:
    least: seconds; 0 watches nothing.
    abort: seconds of waiting after which the process ends with 70, or None.
  """

  def __init__(self, timeout: float = 30.0, abort_after: float | None = None):
    self._timeout, self._abort_after = timeout, abort_after
    self._what: str | None = None
    self._since = self._last = time.monotonic()
    self._steps: collections.deque[float] = collections.deque(maxlen=100)
    self._is_told, self._lock = False, threading.Lock()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    if self._timeout:
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    if self._timeout:
      self._thread.join()

  def wait_for(self, what: str | None) -> None:
    """From now on, the run waits for this; for nothing if None."""
    self._what, self._since, self._is_told = what, time.monotonic(), False

  @contextlib.contextmanager
  def waiting_for(self, what: str) -> Iterator[None]:
    """Within `with`, the run waits for this."""
    self.wait_for(what)
    try:
      yield
    finally:
      self.wait_for(None)

  def step_done(self) -> None:
    """The devices have answered."""
    now = time.monotonic()
    with self._lock:
      self._steps.append(now - self._last)
    self._last = now
    self.wait_for(None)

  @property
  def limit(self) -> float:
    """Seconds of waiting that are too many."""
    with self._lock:
      steps = list(self._steps)[1:]  # before the first one was a compilation
    return max(
      self._timeout, TIMES * statistics.median(steps) if steps else 0.0
    )

  def _watch(self) -> None:
    while not self._ended.wait(min(1.0, self._timeout / 4)):
      what, waited = self._what, time.monotonic() - self._since
      if what is None:
        continue
      if waited > self.limit and not self._is_told:
        self._is_told = True
        _show(f"waiting for {what} for {waited:.0f} s; every thread stands at:")
      if self._abort_after is not None and waited > self._abort_after:
        _show(f"gave up waiting for {what} after {waited:.0f} s")
        os._exit(HUNG)  # no thread can end the others


def _show(line: str) -> None:
  """Every process for itself: any of them may be the one that hangs."""
  print(f"warning: {line}", file=sys.stderr, flush=True)
  faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
  sys.stderr.flush()
