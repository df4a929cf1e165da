"""Runs the commands of gallery.md and keeps their pictures in gallery/."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
PAGE = (HERE / "gallery.md").read_text()


def commands() -> list[list[str]]:
  """The words of every command on the page."""
  blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
  return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


def main() -> None:
  """Draws into a folder that goes away, and keeps the grids."""
  with tempfile.TemporaryDirectory() as folder:
    for words in commands():
      words = [re.sub(r"^outputs/", f"{folder}/", word) for word in words[1:]]
      done = subprocess.run(
        [sys.executable, *words], check=True, text=True, stdout=subprocess.PIPE
      )
      grid = pathlib.Path(done.stdout.split()[-1])
      kept = HERE / "gallery" / f"{grid.parent.name}.png"
      shutil.copy(grid, kept)
      print(kept)


if __name__ == "__main__":
  main()
