"""A polite end: Ctrl-C and SIGTERM become a flag the loop reads."""

import os
import signal
from types import FrameType

import jax

from ldm_jax.runtime.devices.sharding import Sharding


class InterruptHandler:
  """Within `with`, remembers the first signal; a second one acts at once."""

  def __init__(self):
    self.received: signal.Signals | None = None
    self._before = {}

  def __enter__(self) -> "InterruptHandler":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _remember(self, number: int, _: FrameType | None) -> None:
    self.received = signal.Signals(number)
    for each in self._before:
      signal.signal(each, _at_once)


def _at_once(number: int, _: FrameType | None) -> None:
  """Nothing is waited for: a save under way stays half written, unseen."""
  os.write(2, b"interrupted\n")
  os._exit(128 + number)


class SharedInterrupt:
  """What any process has received, known to all of them at the same step.

  Each step tells the devices what its process has heard, and reads what all had
  told in the step before, so nobody waits. A process by itself knows at once.
  """

  def __init__(self, sharding: Sharding):
    self._sharding = sharding
    self._asked: jax.Array | None = None

  def __call__(self, mine: signal.Signals | None) -> signal.Signals | None:
    """What to end by now, if anything."""
    if jax.process_count() == 1:
      return mine
    asked, self._asked = self._asked, self._sharding.global_max(int(mine or 0))
    told = 0 if asked is None else int(asked)
    return signal.Signals(told) if told else None


def exit_code(received: signal.Signals | None) -> int:
  """128 + the signal's number, as shells count; 0 without one."""
  return 0 if received is None else 128 + received
