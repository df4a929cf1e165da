"""Runs the commands of gallery.md and stores their images in gallery/."""

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
  """Every `ldm-jax` command on the page, divided into arguments."""
  blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
  return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


def main() -> None:
  """Samples into a temporary folder and keeps the image grids."""
  with tempfile.TemporaryDirectory() as folder:
    for command in commands():
      arguments = [
        re.sub(r"^outputs/", f"{folder}/", each) for each in command[1:]
      ]
      done = subprocess.run(
        [sys.executable, "-m", "ldm_jax", *arguments],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
      )
      grid = pathlib.Path(done.stdout.split()[-1])
      kept = HERE / "gallery" / f"{grid.parent.name}.png"
      shutil.copy(grid, kept)
      print(kept)


if __name__ == "__main__":
  main()
