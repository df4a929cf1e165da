"""Log records on stderr: which are shown, how, and next to a progress bar."""

import logging

import pytest

from ldm_jax.cli.flags.parser import Parser
from ldm_jax.cli.streams import logging_setup
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.monitoring import progress

PACKAGE = logging.getLogger("ldm_jax")
LOGGER = logging.getLogger("ldm_jax.test")


@pytest.fixture(autouse=True)
def restored():
  """The package's logger as it was before the test."""
  handlers, level = list(PACKAGE.handlers), PACKAGE.level
  PACKAGE.handlers.clear()
  yield
  PACKAGE.handlers[:] = handlers
  PACKAGE.setLevel(level)


def log_all():
  LOGGER.debug("details")
  LOGGER.info("progress")
  LOGGER.warning("careful")
  LOGGER.error("broken")


def test_one_formatter_for_all_levels_on_stderr(capsys):
  logging_setup.configure()
  log_all()
  out, err = capsys.readouterr()
  assert out == ""
  assert err == "progress\nwarning: careful\nerror: broken\n"


def test_configuring_again_adds_no_second_handler(capsys):
  for _ in range(3):
    logging_setup.configure()
  LOGGER.info("once")
  assert capsys.readouterr().err == "once\n"
  assert len(PACKAGE.handlers) == 1


@pytest.mark.parametrize(
  "flags, shown",
  [
    ([], ["progress", "warning: careful", "error: broken"]),
    (["--quiet"], ["warning: careful", "error: broken"]),
    (
      ["--verbose"],
      ["debug: details", "progress", "warning: careful", "error: broken"],
    ),
  ],
)
def test_quiet_and_verbose_choose_the_level(flags, shown, capsys):
  Parser("ldm-jax test", "A command.").read(flags)
  log_all()
  assert capsys.readouterr().err.splitlines() == shown


def test_later_processes_show_only_records_for_all(capsys, monkeypatch):
  logging_setup.configure()
  monkeypatch.setattr(processes, "is_first", lambda: False)
  log_all()
  LOGGER.error("hanging", extra={"all_processes": True})
  assert capsys.readouterr().err == "error: hanging\n"


def test_a_record_does_not_break_a_line_of_progress(capsys, monkeypatch):
  logging_setup.configure()
  monkeypatch.setattr(progress, "PERIOD", 0.0)
  with progress.Progress("testing", 4) as bar:
    bar.update(2)
    LOGGER.warning("step 2")
  lines = capsys.readouterr().err.splitlines()
  assert lines[1] == "warning: step 2" and len(lines) == 3
