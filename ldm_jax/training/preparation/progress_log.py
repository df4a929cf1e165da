"""What an interrupted preparation of latents has on the disk."""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import DataError
from ldm_jax.files.atomic_writes import open_append, replace_file
from ldm_jax.files.regular_files import read_regular
from ldm_jax.files.strict_json import parse_json


class ProgressLog:
  """Blocks that are on disk, each with its first number and its captions."""

  def __init__(self, path: str):
    self._path = path
    self.blocks: list[list[Any]] = []
    if os.path.exists(path):
      text = read_regular(path)
      # A killed process may leave half a line.
      lines = text[: text.rfind(b"\n") + 1].splitlines()
      with contextlib.suppress(DataError):  # blocks after it are made again
        for line in lines:
          self.blocks.append(_block(line))
    self._written = len(self.blocks)

  def keep(self, starts: Sequence[int]) -> int:
    """Drops all from the first block that is not at its place of `starts`.

    Returns the number of blocks that are left.
    """
    wrong = (
      number
      for number, block in enumerate(self.blocks)
      if block[0] not in starts[number : number + 1]
    )
    del self.blocks[next(wrong, len(self.blocks)) :]
    with replace_file(self._path, "utf-8") as file:
      file.writelines(json.dumps(block) + "\n" for block in self.blocks)
    self._written = len(self.blocks)
    return self._written

  def write(self) -> None:
    """Appends the blocks added since the last call."""
    blocks = self.blocks[self._written :]
    text = "".join(json.dumps(block) + "\n" for block in blocks)
    with open_append(self._path) as file:
      file.write(text.encode())
    self._written = len(self.blocks)


def log_path(folder: str, process: int, count: int) -> str:
  """The file of one of `count` processes that prepare a folder."""
  return os.path.join(folder, f"done_{process}_of_{count}.jsonl")


def remove_logs(folder: str) -> None:
  """Removes the logs of a complete folder, of any number of processes."""
  for name in os.listdir(folder):
    if re.fullmatch(r"done_\d+_of_\d+\.jsonl", name):
      os.remove(os.path.join(folder, name))


def _block(line: bytes) -> list[Any]:
  """[first number, captions] of a line; raises DataError for another."""
  match parse_json(line, DataError):
    case [int() as begin, list() as texts] if all(
      isinstance(text, str | None) for text in texts
    ):
      return [begin, texts]
  raise DataError("no block")
