"""Commands that write to one place at once lose and mix nothing."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.cli import convert

# Runs a command for every line of flags, and writes its exit code.
COMMANDS = """
import importlib, sys
from ldm_jax.cli.exit_codes import CommandError
main = importlib.import_module("ldm_jax.cli." + sys.argv[1]).main
for line in sys.stdin:
  try:
    code = main(line.split())
  except CommandError as error:
    code = error.code
  print("code", code, flush=True)
"""


class Command:
  """A process that runs a command again and again."""

  def __init__(self, name):
    self.process = subprocess.Popen(
      [sys.executable, "-c", COMMANDS, name],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parent.parent,
    )

  def begin(self, *flags):
    self.process.stdin.write(" ".join(map(str, flags)) + "\n")
    self.process.stdin.flush()

  def end(self):
    """The lines that were printed, and the exit code."""
    lines = []
    for line in self.process.stdout:
      if line.startswith("code "):
        return lines, int(line.removeprefix("code "))
      lines.append(line.rstrip("\n"))
    raise AssertionError("the process has ended")


@pytest.fixture
def start():
  """Starts two processes of a command; they end with the test."""
  pair = []

  def started(name):
    pair.extend(Command(name) for _ in range(2))
    return pair

  yield started
  for command in pair:
    command.process.stdin.close()
    command.process.stdout.close()
    command.process.wait(60)


def contents(path):
  files = [path] if path.is_file() else sorted(path.rglob("*"))
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in files
    if file.is_file()
  }


@pytest.mark.slow
def test_one_of_two_conversions_to_a_target_is_refused(
  folder,  # noqa: F811
  start,
  tmp_path,
):
  kinds, expected = ([], ["--single_file"]), []
  for i, flags in enumerate(kinds):
    assert convert.main([folder, str(tmp_path / f"alone{i}"), *flags]) == 0
    expected.append(contents(tmp_path / f"alone{i}"))
  pair = start("convert")
  for number in range(6):
    place = tmp_path / f"round{number}"
    place.mkdir()
    for command in pair:
      command.begin(folder, place / "model", *kinds[number % 2])
    assert sorted(command.end()[1] for command in pair) == [0, 2]
    assert [path.name for path in place.iterdir()] == ["model"]
    assert contents(place / "model") == expected[number % 2]


@pytest.mark.slow
def test_two_that_sample_into_one_folder_lose_nothing(
  folder,  # noqa: F811
  start,
  tmp_path,
):
  size = ["--steps=2", "-H=16", "-W=16", "--prompt=fox", "--num=2"]
  pair, out, found = start("sample"), tmp_path / "out", {7: [], 8: []}
  for _ in range(3):
    for seed, command in zip(found, pair, strict=True):
      command.begin(
        f"--model={folder}", *size, f"--seed={seed}", f"--out={out}"
      )
    for seed, command in zip(found, pair, strict=True):
      lines, code = command.end()
      assert code == 0
      found[seed].append([pathlib.Path(line) for line in lines])
  paths = [path for rounds in found.values() for r in rounds for path in r]
  assert len(paths) == len(set(paths)) == 2 * 3 * 3  # two and their grid
  assert set(out.iterdir()) == set(paths)
  pixels = {
    seed: [[np.asarray(Image.open(path)) for path in r] for r in rounds]
    for seed, rounds in found.items()
  }
  for rounds in pixels.values():
    for images in rounds:
      for image, expected in zip(images, rounds[0], strict=True):
        np.testing.assert_array_equal(image, expected)
  assert (pixels[7][0][0] != pixels[8][0][0]).any()
