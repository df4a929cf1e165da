"""Writes images.csv and a folder of small images for the example configs."""

import csv
import pathlib
import sys

from PIL import Image

from ldm_jax.data.glyphs.source import Glyphs


def main(folder: str = ".", count: int = 96) -> None:
  """`count` of the built-in glyphs as PNG files, with captions and labels."""
  glyphs = Glyphs(level=0, split="train")
  images = pathlib.Path(folder, "images")
  images.mkdir(parents=True, exist_ok=True)
  with open(pathlib.Path(folder, "images.csv"), "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["image", "caption", "label"])
    for i in range(count):
      example = glyphs[i]
      name = f"images/{i:05}.png"
      Image.fromarray(example["image"]).save(pathlib.Path(folder, name))
      table.writerow([name, example["caption"], int(example["label"])])


if __name__ == "__main__":
  main(*sys.argv[1:2])
