"""Progress of long phases on stderr: one line each, with the time that is left.

On a terminal the line is rewritten in place. Elsewhere, as in a log file, plain
lines are written: one every PERIOD seconds, and one at the end of the phase.
Nothing is shown where the commands' --quiet has set the level of the logger
`ldm_jax`.
"""

import datetime
import logging
import os
import sys
import time
from types import TracebackType
from typing import Any

from ldm_jax.files.printable import printable

PERIOD = 30.0  # seconds between plain lines
REFRESH = 0.2  # seconds between two states on a terminal


class Progress:
  """The line of one phase; a context manager that ends it.

  Attributes:
    done: items that are finished.

  Args:
    phase: what is done, such as "training".
    total: items in all.
    unit: of the items, in the plural.
    done: items that an earlier process has finished.
    is_shown: false for all processes but the first.
  """

  def __init__(
    self,
    phase: str,
    total: int,
    unit: str = "steps",
    done: int = 0,
    is_shown: bool = True,
  ):
    self._phase, self._total, self._unit = printable(phase), total, unit
    self.done, self._text = done, ""
    self._start = self._written = time.monotonic()
    self._first: tuple[float, int] | None = None  # of the first update
    level = logging.getLogger("ldm_jax").level
    self._is_shown = is_shown and level < logging.WARNING
    self._task: Any = None
    if self._is_shown and _is_terminal():
      self._task = _display().add(self._phase, total, unit, done)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()

  def update(self, count: int = 1, text: str = "") -> None:
    """`count` more items are finished.

    Args:
      text: to stand at the end of the line from now on.
    """
    self.done += count
    self._text = printable(text) or self._text
    now = time.monotonic()
    self._first = self._first or (now, self.done)
    if self._task is not None:
      _display().update(self._task, self.done, self._text)
    elif self._is_shown and now - self._written >= PERIOD:
      self._write(f"{_duration(self._seconds_left(now))} left")

  def close(self) -> None:
    """Ends the line; may be called again."""
    if not self._is_shown:
      return
    self._is_shown = False
    if self._task is not None:
      _display().end(self._task)
      return
    self._write(f"in {_duration(time.monotonic() - self._start)}")

  def _seconds_left(self, now: float) -> float | None:
    """By the speed since the first update, before which a program compiles."""
    begin, done = self._first or (now, self.done)
    if now <= begin or self.done <= done:
      return None
    speed = (self.done - done) / (now - begin)
    return max(0, self._total - self.done) / speed

  def _write(self, when: str) -> None:
    self._written = time.monotonic()
    line = f"{self._phase}: {self.done} of {self._total} {self._unit}, {when}"
    write_line(f"{line}, {self._text}" if self._text else line)


def write_line(line: str) -> None:
  """Writes a line to stderr, above the lines of progress if there are any."""
  if _displays:
    _displays[0].write(line)
  elif sys.stderr is not None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _Display:
  """The lines of all phases that run, at the end of a terminal."""

  def __init__(self):
    from rich.console import Console
    from rich.progress import (
      BarColumn,
      MofNCompleteColumn,
      Progress,
      TextColumn,
      TimeRemainingColumn,
    )

    self._rich = Progress(
      TextColumn("{task.description}", markup=False),
      BarColumn(bar_width=24),
      MofNCompleteColumn(),
      TextColumn("{task.fields[unit]},", markup=False),
      TimeRemainingColumn(compact=True),
      TextColumn("left  {task.fields[text]}", markup=False),
      console=Console(file=sys.stderr),
      auto_refresh=False,
      redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    self._open: set[Any] = set()
    self._refreshed = 0.0
    self._rich.start()
    # Rich hides it until the end, which a killed process does not reach.
    self._rich.console.show_cursor(True)

  def add(self, phase: str, total: int, unit: str, done: int) -> Any:
    """A new line; returns what the other methods take."""
    task = self._rich.add_task(
      phase, total=total, completed=done, unit=unit, text=""
    )
    self._open.add(task)
    return task

  def update(self, task: Any, done: int, text: str) -> None:
    """Changes a line, at most every REFRESH seconds."""
    self._rich.update(task, completed=done, text=text)
    if time.monotonic() - self._refreshed >= REFRESH:
      self._refresh()

  def end(self, task: Any) -> None:
    """Leaves a line as it is; the last one leaves the terminal as before."""
    self._open.discard(task)
    self._rich.stop_task(task)
    self._refresh()
    if not self._open:
      _displays.clear()
      self._rich.stop()

  def write(self, line: str) -> None:
    """A line above."""
    self._rich.console.print(
      line, markup=False, highlight=False, soft_wrap=True
    )

  def _refresh(self) -> None:
    self._refreshed = time.monotonic()
    self._rich.refresh()


_displays: list[_Display] = []  # the one in use, if any


def _display() -> _Display:
  if not _displays:
    _displays.append(_Display())
  return _displays[0]


def _is_terminal() -> bool:
  is_dumb = os.environ.get("TERM") == "dumb"
  return sys.stderr is not None and sys.stderr.isatty() and not is_dumb


def _duration(seconds: float | None) -> str:
  """Hours, minutes and seconds; an unknown time is "?"."""
  if seconds is None:
    return "?"
  return str(datetime.timedelta(seconds=round(seconds)))
