"""Images as PNG files, single or as a grid with captions."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ldm_jax.files.atomic_writes import replace_file, write_under_free_name


def image_grid(
  images: np.ndarray, captions: Sequence[str] = (), columns: int | None = None
) -> np.ndarray:
  """Lays uint8 images [n, h, w, 3] out row by row, about as high as wide.

  Captions are written below, wrapped to the width of a cell; small images are
  enlarged by a whole factor so that they fit.

  Args:
    columns: images per row; None is about the square root of n.
  """
  count, height, width, _ = images.shape
  columns = min(count, columns or int(np.ceil(np.sqrt(count))))
  factor = max(1, -(-(128 if len(captions) else 64) // width))
  images = images.repeat(factor, 1).repeat(factor, 2)
  if len(captions):
    images = _captioned(images, captions)
  _, height, width, _ = images.shape
  rows = -(-count // columns)
  gap = 2
  sheet = np.full(
    (rows * (height + gap) - gap, columns * (width + gap) - gap, 3),
    255,
    np.uint8,
  )
  for i, image in enumerate(images):
    top = i // columns * (height + gap)
    left = i % columns * (width + gap)
    sheet[top : top + height, left : left + width] = image
  return sheet


def _captioned(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
  import textwrap

  from PIL import Image, ImageDraw, ImageFont

  font = ImageFont.load_default(11)
  width = images.shape[2]
  letters = max(8, width // 6)
  texts = [textwrap.wrap(caption, letters) or [""] for caption in captions]
  lines = max(len(text) for text in texts)
  cells = []
  for image, text in zip(images, texts, strict=True):
    label = Image.new("RGB", (width, 13 * lines + 4), "white")
    ImageDraw.Draw(label).multiline_text(
      (2, 1), "\n".join(text), "black", font, spacing=1
    )
    cells.append(np.concatenate([image, np.asarray(label)]))
  return np.stack(cells)


def write_png(
  path: str, image: np.ndarray, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one uint8 image; the file appears only when it is complete.

  Args:
    metadata: text chunks of the PNG by keyword: tEXt, which every reader
      knows, if the text is Latin-1, and iTXt otherwise.
  """
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  with replace_file(path) as file:
    save_png(file, image, metadata)


def write_new_png(
  paths: Iterable[str],
  image: np.ndarray,
  metadata: Mapping[str, str] | None = None,
) -> str:
  """`write_png` to the first path that does not exist, which is returned.

  Processes that write at the same time never overwrite each other's images.
  """
  return write_under_free_name(
    paths, lambda file: save_png(file, image, metadata)
  )


def save_png(
  file: io.IOBase,
  image: np.ndarray,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes one uint8 image to an open file; see `write_png`."""
  from PIL import Image
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  for name, value in (metadata or {}).items():
    add = info.add_text if _is_latin1(value) else info.add_itxt
    add(name, value)
  Image.fromarray(image).save(file, "PNG", pnginfo=info)


def _is_latin1(text: str) -> bool:
  try:
    text.encode("latin-1")
  except UnicodeEncodeError:
    return False
  return True
