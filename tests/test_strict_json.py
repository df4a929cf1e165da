"""JSON of files: what is read, and what is refused in one line."""

import math

import pytest

from ldm_jax.errors import ConfigError, DataError, WeightsError
from ldm_jax.files.strict_json import (
  MAX_DEPTH,
  parse_json,
  parse_lines,
  parse_object,
  read_object,
)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{",
    '{"a": 1}x',
    '{"a": NaN}',
    '{"a": -Infinity}',
    '{"a": 1e999}',
    '{"a": 1, "a": 2}',
    '{"a": "\\ud800"}',
    '{"\\ud800": 1}',
    '{"a": ' + "9" * 301 + "}",
    '{"a": ' + "9" * 5000 + "}",
    "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "[" * 100_000,
    b"\xff\xfe{}",
    '{"a": ²}',
  ],
)
def test_what_is_no_json_is_refused_in_one_line(text):
  for error in (ConfigError, DataError, WeightsError):
    with pytest.raises(error) as refused:
      parse_json(text, error)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_values_are_those_of_the_text():
  text = b'\xef\xbb\xbf{"a": [1, 2.5, true, null, "\\u00e4\\ud83d\\ude00"]}'
  found = parse_json(text, DataError)
  assert found == {"a": [1, 2.5, True, None, "ä\U0001f600"]}
  nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
  assert parse_json(nested, DataError)
  constants = parse_json(
    "[NaN, -Infinity, 1e999]", DataError, has_constants=True
  )
  assert math.isnan(constants[0]) and constants[1:] == [-math.inf, math.inf]


@pytest.mark.parametrize("text", ["5", "null", "[]", '"a"', "true"])
def test_an_object_is_needed(tmp_path, text):
  path = tmp_path / "a.json"
  path.write_text(text)
  with pytest.raises(ConfigError, match=r"a\.json holds .*; expected a JSON"):
    read_object(path, ConfigError)
  with pytest.raises(DataError, match="x holds"):
    parse_object(text, "x", DataError)


def test_files_that_cannot_be_read_are_named(tmp_path):
  import os

  with pytest.raises(FileNotFoundError):
    read_object(tmp_path / "none", ConfigError)
  with pytest.raises(ConfigError, match="cannot be read"):
    read_object(tmp_path, ConfigError)
  os.mkfifo(tmp_path / "pipe")  # opened, it would wait for a writer
  with pytest.raises(ConfigError, match="a regular file is needed"):
    read_object(tmp_path / "pipe", ConfigError)


def test_foreign_lines_are_reported():
  text = b'{"a": 1}\n5\n\nnot JSON\n{"b": 1}\n{"a": "x\xe2\x80\xa8y"}\n'
  problems = []
  found = parse_lines(text, ("a",), DataError, problems.append)
  assert found == [{"a": 1}, {"a": "x\u2028y"}]
  assert [p.split(" ")[1].rstrip(":") for p in problems] == ["2", "4", "5"]
