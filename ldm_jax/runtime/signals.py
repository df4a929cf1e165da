"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 become a flag that the loop reads."""

import os
import signal
from types import FrameType

import jax

from ldm_jax.runtime.devices.sharding import Sharding

# SIGUSR1 and SIGUSR2 are what Slurm's --signal usually sends before the end.
SIGNALS = tuple(
  getattr(signal, name)
  for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
  if hasattr(signal, name)  # Windows has the first two
)


class InterruptHandler:
  """Within `with`, stores the first signal; Ctrl-C after it ends the process.

  Others after it are ignored: a batch system often sends SIGTERM while the save
  that SIGUSR1 asked for is being written.

  Attributes:
    received: the signal, or None.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._previous = {}

  def __enter__(self) -> "InterruptHandler":
    for number in SIGNALS:
      self._previous[number] = signal.signal(number, self._store)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _store(self, number: int, _: FrameType | None) -> None:
    self.received = signal.Signals(number)
    for each in self._previous:
      is_ctrl_c = each == signal.SIGINT
      signal.signal(each, _exit_at_once if is_ctrl_c else signal.SIG_IGN)


def _exit_at_once(number: int, _: FrameType | None) -> None:
  """Ends the process at once; a save in progress stays incomplete."""
  os.write(2, b"interrupted\n")
  os._exit(128 + number)


class SharedInterrupt:
  """The signal that any process has received, at the same step on all.

  Each step sends the process's own signal to the devices and reads the maximum
  of the step before, so that no process waits. A single process needs no such
  delay.
  """

  def __init__(self, sharding: Sharding):
    self._sharding = sharding
    self._pending: jax.Array | None = None

  def __call__(self, own: signal.Signals | None) -> signal.Signals | None:
    """The signal to end by after this step, or None.

    Args:
      own: the signal that this process has received.
    """
    if jax.process_count() == 1:
      return own
    pending, self._pending = (
      self._pending,
      self._sharding.global_max(int(own or 0)),
    )
    number = 0 if pending is None else int(pending)
    return signal.Signals(number) if number else None


def exit_code(received: signal.Signals | None) -> int:
  """128 + the signal's number, as shells have it; 0 without a signal."""
  return 0 if received is None else 128 + received
