"""A polite end: Ctrl-C and SIGTERM become a flag the loop reads."""

import signal
from types import FrameType


class Interruption:
  """Within `with`, remembers the first signal; a second one acts at once."""

  def __init__(self):
    self.received: signal.Signals | None = None
    self._before = {}

  def __enter__(self) -> "Interruption":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _remember(self, number: int, _: FrameType | None) -> None:
    self.received = signal.Signals(number)
    for each, handler in self._before.items():
      signal.signal(each, handler)

  @property
  def exit_code(self) -> int:
    """128 + the signal's number, as shells count; 0 without one."""
    return 0 if self.received is None else 128 + self.received
