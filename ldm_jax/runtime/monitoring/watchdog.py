"""Logs the stacks of all threads when a run has stopped making progress."""

import collections
import contextlib
import faulthandler
import logging
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax

logger = logging.getLogger(__name__)

INPUT, DEVICES, DISK = "the input", "the devices", "devices and disk"
MEDIANS = 3  # waiting for this many median steps counts as a hang
HUNG = 70  # exit code
LOG_SECONDS = 5.0  # until logging itself counts as hanging


class Watchdog:
  """Logs all threads' stacks if input, devices or disk keep a run waiting.

  Within `with`, a thread checks whether what is waited for has come within
  `timeout` seconds, or three median steps if that is longer. Each process has
  its own and logs for itself, at level ERROR: any of them may be the one that
  hangs. Time in which the process itself was stopped does not count, as by
  Ctrl-Z or Slurm's suspension. Nothing is watched while nothing is waited for,
  as in a compilation.

  Args:
    timeout: seconds; 0 watches nothing.
    abort_after: seconds of waiting after which the process ends with exit code
      70, or None for never.
  """

  def __init__(self, timeout: float = 30.0, abort_after: float | None = None):
    self._timeout, self._abort_after = timeout, abort_after
    self._what: str | None = None
    self._since = self._last_step = time.monotonic()
    self._steps: collections.deque[float] = collections.deque(maxlen=100)
    self._is_reported, self._lock = False, threading.Lock()
    self._process = 0
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    if self._timeout:
      self._process = jax.process_index()  # a later call might hang
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    if self._timeout:
      self._thread.join()

  def wait_for(self, what: str | None) -> None:
    """Sets what the run waits for from now on; None is nothing."""
    self._what, self._since = what, time.monotonic()
    self._is_reported = False

  @contextlib.contextmanager
  def waiting_for(self, what: str) -> Iterator[None]:
    """Within `with`, the run waits for this."""
    self.wait_for(what)
    try:
      yield
    finally:
      self.wait_for(None)

  def step_done(self) -> None:
    """The devices have finished a step."""
    now = time.monotonic()
    with self._lock:
      self._steps.append(now - self._last_step)
    self._last_step = now
    self.wait_for(None)

  @property
  def limit(self) -> float:
    """Seconds of waiting that count as a hang."""
    with self._lock:
      steps = list(self._steps)[1:]  # before the first one was a compilation
    slow = MEDIANS * statistics.median(steps) if steps else 0.0
    return max(self._timeout, slow)

  def _watch(self) -> None:
    pause, before = min(1.0, self._timeout / 4), time.monotonic()
    while not self._ended.wait(pause):
      now = time.monotonic()
      stopped, before = now - before - pause, now
      if stopped > max(1.0, pause):
        # The process was stopped (SIGSTOP) or the machine suspended: nothing
        # could be done meanwhile, so it does not count as waiting.
        self._since = min(self._since + stopped, now)
        self._last_step = min(self._last_step + stopped, now)
      what, waited = self._what, time.monotonic() - self._since
      if what is None:
        continue
      if waited > self.limit and not self._is_reported:
        self._is_reported = True
        self._report(f"waiting for {what} for {waited:.0f} s; all threads:")
      if self._abort_after is not None and waited > self._abort_after:
        self._report(f"gave up waiting for {what} after {waited:.0f} s")
        os._exit(HUNG)  # no thread can end the others

  def _report(self, line: str) -> None:
    """Logs a line and the stacks, in a thread that may be left behind.

    The main thread may hang within a log handler, whose lock it holds then.
    After LOG_SECONDS the stacks are written to stderr without any lock.
    """
    text = f"process {self._process}: {line}\n{_stacks()}"
    is_logged = threading.Event()

    def log() -> None:
      logger.error("%s", text, extra={"all_processes": True})
      is_logged.set()

    threading.Thread(target=log, daemon=True).start()
    if not is_logged.wait(LOG_SECONDS):
      os.write(2, f"error: process {self._process}: {line}\n".encode())
      faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)


def _stacks() -> str:
  """The stack of every thread, the innermost call last."""
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  found = []
  for number, frame in sys._current_frames().items():
    found.append(f"thread {names.get(number, number)}:\n")
    found += traceback.format_stack(frame)
  return "".join(found)
