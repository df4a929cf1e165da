"""A source: a CSV file of images, captions and labels."""

import csv
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class CsvSource:
  """Rows of "image" (a path next to the file), "caption" and "label".

  Attributes:
    path: of the CSV file.
    start, stop: the rows that are used; stop 0 is the last row.
  """

  path: str
  start: int = 0
  stop: int = 0

  def __len__(self) -> int:
    return len(rows(self.path)[self.start : self.stop or None])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Example `index`: "image" uint8 [h w 3], "caption" text, "label" int32."""
    row = rows(self.path)[self.start : self.stop or None][index]
    file = pathlib.Path(self.path).parent / row["image"]
    with Image.open(file) as image:
      pixels = np.asarray(image.convert("RGB"))
    return {
      "image": pixels,
      "caption": row["caption"],
      "label": np.int32(row["label"]),
    }


@functools.cache
def rows(path: str) -> list[dict[str, str]]:
  """The rows of a CSV file, read once per process."""
  with open(path, newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))
