"""Progress: a line in place on a terminal, plain lines elsewhere."""

import contextlib
import io
import logging
import re
import sys

import pytest

from ldm_jax.cli.streams import logging_setup
from ldm_jax.runtime.monitoring import progress
from ldm_jax.runtime.monitoring.progress import Progress

LOGGER = logging.getLogger("ldm_jax.test")


class Terminal(io.StringIO):
  """A stream that says that it is a terminal."""

  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """The time, in a list, which a test sets."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


@contextlib.contextmanager
def terminal(monkeypatch, kind="xterm"):
  """stderr as a terminal of a kind; a fixture would be undone by pytest."""
  monkeypatch.setenv("TERM", kind)
  with contextlib.redirect_stderr(Terminal()) as stream:
    yield stream
    assert not progress._displays and sys.stderr is stream


def test_plain_lines_have_the_time_that_is_left(clock, capsys):
  with Progress("training", 100, done=20) as bar:
    for clock[0] in (100.0, 110.0, 120.0, 130.0, 135.0):
      bar.update(10, f"loss {clock[0]:g}")
  # The first update, at which a program has been compiled, is the start.
  assert capsys.readouterr().err.splitlines() == [
    "training: 30 of 100 steps, ? left, loss 100",
    "training: 60 of 100 steps, 0:00:40 left, loss 130",
    "training: 70 of 100 steps, in 0:02:15, loss 135",
  ]


def test_closing_again_writes_nothing(capsys):
  bar = Progress("packing", 1, "files")
  bar.close()
  bar.close()
  assert capsys.readouterr().err == "packing: 0 of 1 files, in 0:00:00\n"


def test_other_processes_and_quiet_commands_write_nothing(capsys):
  with Progress("training", 2, is_shown=False) as bar:
    bar.update()
  logging_setup.configure(-1)
  try:
    with Progress("training", 2) as bar:
      bar.update()
  finally:
    logging_setup.configure()
  assert capsys.readouterr().err == ""


def lines_of(stream):
  """What a terminal has written, without its codes."""
  return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue())


def test_a_terminal_has_one_line_for_each_phase(monkeypatch):
  with (
    terminal(monkeypatch) as stream,
    Progress("outer [red]", 4, "images") as outer,
  ):
    outer.update(2, "loss [1]")
    with Progress("inner", 2) as inner:
      inner.update(2)
    outer.update(2)
    outer.close()
  text = lines_of(stream)
  for part in ("outer [red]", "4/4 images", "loss [1]", "inner", "2/2 steps"):
    assert part in text, part
  last = text.rstrip().splitlines()[-2:]
  assert "outer" in last[0] and "inner" in last[1]


def test_a_record_is_above_the_line_of_a_terminal(monkeypatch):
  logging_setup.configure()
  with terminal(monkeypatch) as stream, Progress("training", 2) as bar:
    bar.update()
    LOGGER.warning("a [b] warning")
    bar.update()
    bar.close()
  lines = lines_of(stream).replace("\r", "\n").splitlines()
  assert "warning: a [b] warning" in lines
  assert "2/2 steps" in [line for line in lines if line.strip()][-1]


def test_a_terminal_without_codes_has_plain_lines(monkeypatch):
  with terminal(monkeypatch, "dumb") as stream:
    Progress("training", 2).close()
  assert stream.getvalue() == "training: 0 of 2 steps, in 0:00:00\n"
