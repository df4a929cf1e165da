"""No control character of a file name, a config or a caption reaches stderr."""

import json
import logging
import subprocess
import sys

import pytest

from ldm_jax.cli import info, train
from ldm_jax.cli.exit_codes import INTERNAL, USAGE, exit_status
from ldm_jax.cli.streams.logging_setup import configure
from ldm_jax.errors import ConfigError, DataError, ImageError, WeightsError
from ldm_jax.files.printable import printable

HOSTILE = "a\x1b[2J\x07\x9b1m\u202eb\nerror: c\r"
LOGGER = logging.getLogger("ldm_jax.test")


def is_clean(text, lines=1):
  assert text.count("\n") == lines, text
  return all(c.isprintable() or c == "\n" for c in text)


def test_controls_are_escaped_and_the_rest_is_kept():
  assert printable("Käse \U0001f600 猫") == "Käse \U0001f600 猫"
  assert printable(HOSTILE) == "a\\x1b[2J\\x07\\x9b1m\\u202eb error: c "
  assert printable("a\nb\x00", keep="\n") == "a\nb\\x00"
  assert printable("\ud800") == "\\ud800"
  family = "\U0001f468\u200d\U0001f469"
  assert printable(family) == family


@pytest.mark.parametrize("kind", [ConfigError, DataError, WeightsError])
def test_an_error_is_one_line(capsys, kind):
  def main(arguments):
    raise kind(HOSTILE)

  assert exit_status(main, []) != INTERNAL
  assert is_clean(capsys.readouterr().err)


def test_a_traceback_has_no_controls(capsys):
  def main(arguments):
    raise KeyError(HOSTILE, ImageError(HOSTILE, "corrupt", HOSTILE))

  assert exit_status(main, []) == INTERNAL
  found = capsys.readouterr().err
  assert is_clean(found, found.count("\n"))


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_log_record_is_one_line(capsys, level):
  configure()
  LOGGER.log(level, "%s of %d", HOSTILE, 3)
  LOGGER.log(level, f"in {HOSTILE}")
  assert is_clean(capsys.readouterr().err, lines=2)


def test_a_warning_of_python_is_one_line():
  code = (
    "import warnings\n"
    "from ldm_jax.cli.streams.logging_setup import configure\n"
    "configure(), configure()\n"
    f"warnings.warn({HOSTILE!r}, stacklevel=1)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert "UserWarning: a\\x1b[2J" in done.stderr
  assert is_clean(done.stderr, lines=2)  # the second is of the source


def test_names_of_files_and_values_of_configs_are_escaped(tmp_path, capsys):
  folder = tmp_path / "x\x1b[31m"
  folder.mkdir()
  config = folder / "config.json"
  config.write_text(json.dumps({"experiment": {"class": HOSTILE}}))
  assert exit_status(info.main, [str(folder)]) == USAGE
  assert is_clean(capsys.readouterr().err)
  arguments = [f"--config={HOSTILE}", f"--workdir={tmp_path}"]
  assert exit_status(train.main, arguments) == USAGE
  assert is_clean(capsys.readouterr().err)
  assert not sys.stderr.closed
