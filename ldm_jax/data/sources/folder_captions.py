"""Captions, scores and labels of images, from text and metadata files."""

import csv
import dataclasses
import io
import logging
import math
import os
import pathlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ldm_jax.data.sources.tables import PARQUET, GroupCache, open_table
from ldm_jax.errors import DataError
from ldm_jax.files.regular_files import read_regular
from ldm_jax.files.strict_json import parse_object

logger = logging.getLogger(__name__)

ENDINGS = (".txt", ".caption")  # of an image's own caption, in this order
FOLDER_CAPTION = "caption.txt"  # one caption for all images of its folder
# Hugging Face's ImageFolder with captions; names are relative to the file.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FIELDS = ("file_name", "text", "caption", "label", "score")
NEEDED = "expected file_name and text or label, and a finite score if any"


@dataclasses.dataclass(frozen=True)
class Captions:
  """Captions of images by relative name.

  Attributes:
    root: the folder.
    texts: the text file that captions an image.
    listed: captions of metadata files; None where one says null.
    scores: of metadata files.
    labels: of metadata files, as they are there; None for what lacks one.
  """

  root: pathlib.Path
  texts: Mapping[str, str]
  listed: Mapping[str, str | None]
  scores: Mapping[str, float]
  labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __bool__(self) -> bool:
    return bool(self.texts) or any(
      text is not None for text in self.listed.values()
    )

  def __getitem__(self, name: str) -> str:
    """The caption of an image; "" if it has none."""
    if name in self.texts:
      return one_line(_read_text(self.root / self.texts[name]))
    return self.listed.get(name) or ""


def read_captions(
  root: pathlib.Path, files: Sequence[str], images: Sequence[str]
) -> Captions:
  """Finds the captions of `images` among `files`, relative names with /.

  Images without a caption, and text files of no image, are counted and
  logged, if there are captions at all.

  Raises:
    DataError: a metadata file is malformed, or names an image twice or one
      that does not exist.
  """
  known = frozenset(images)
  listed: dict[str, str | None] = {}
  scores: dict[str, float] = {}
  labels: dict[str, Any] = {}
  several = 0
  for file in files:
    folder, base = posixpath.split(file)
    if base not in METADATA:
      continue
    for where, entry in _entries(root / file):
      name, text, score = _fields(where, folder, entry)
      if name not in known:
        raise DataError(
          f"{where}: {entry['file_name']!r} is not an image of this folder; "
          f"names are relative to {base}"
        )
      if name in listed:
        raise DataError(f"{where}: {name!r} is listed twice")
      several += isinstance(text, list) and len(text) > 1
      listed[name] = caption_of(text, where)
      if score is not None:
        scores[name] = score
      if "label" in entry:
        labels[name] = entry["label"]
  texts = _texts(files, images)
  found = Captions(root, texts, listed, scores, labels)
  if found:
    _report(found, files, images, several)
  return found


def caption_of(value: Any, where: str) -> str | None:
  """A caption of JSON: a text, the first of a list of texts, or null.

  Raises:
    DataError: it is another value.
  """
  if isinstance(value, list) and all(isinstance(text, str) for text in value):
    value = value[0] if value else None
  if value is not None and not isinstance(value, str):
    raise DataError(
      f"{where}: the caption is {str(value)[:60]!r}; expected a text, a list "
      "of texts or null"
    )
  return None if value is None else one_line(value)


def one_line(text: str) -> str:
  """A text with single spaces for line breaks and other spaces."""
  return " ".join(text.split())


def _texts(files: Sequence[str], images: Sequence[str]) -> dict[str, str]:
  """The text file of each image that has one; endings in any case."""
  by_name: dict[str, str] = {}
  for name in files:
    stem, ending = posixpath.splitext(name)
    if ending.lower() in ENDINGS:
      by_name.setdefault(stem + ending.lower(), name)
  found = {}
  for image in images:
    stem = posixpath.splitext(image)[0]
    common = posixpath.join(posixpath.dirname(image), FOLDER_CAPTION)
    wanted = [*(stem + ending for ending in ENDINGS), common]
    text = next((by_name[name] for name in wanted if name in by_name), None)
    if text is not None:
      found[image] = text
  return found


def _report(
  captions: Captions,
  files: Sequence[str],
  images: Sequence[str],
  several: int,
) -> None:
  """Logs images without captions, and text files that caption none."""
  root = captions.root
  is_empty = {
    text: not os.path.getsize(root / text)
    for text in set(captions.texts.values())
  }
  bare = [
    name
    for name in images
    if is_empty.get(captions.texts.get(name, ""), not captions.listed.get(name))
  ]
  if bare:
    logger.warning(
      '%s: %d of %d images have no caption and get ""; the first is %s',
      *(root, len(bare), len(images), bare[0]),
    )
  used = set(captions.texts.values())
  unused = [
    name
    for name in files
    if posixpath.splitext(name)[1].lower() in ENDINGS and name not in used
  ]
  if unused:
    logger.warning(
      "%s: %d text files are of no image; the first is %s",
      *(root, len(unused), unused[0]),
    )
  if several:
    logger.warning(
      "%s: %d images have several captions; the first is used", root, several
    )


def _entries(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """(place in error messages, entry) of a metadata file."""
  if path.suffix == PARQUET:
    table = open_table(str(path), FIELDS, GroupCache(0.0))
    for number in range(len(table)):
      yield f"{path}:{number}", table.row(number)
    return
  text = _read_text(path)
  if path.suffix == ".csv":
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
      for row in rows:
        where = f"{path}:{rows.line_num}"
        if None in row or None in row.values():
          raise DataError(f"{where} has another number of fields than line 1")
        yield where, row
    except csv.Error as error:
      raise DataError(f"{path}:{rows.line_num}: {error}") from error
    return
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      where = f"{path}:{number}"
      yield where, parse_object(line, where, DataError)


def _fields(
  where: str, folder: str, entry: Mapping[str, Any]
) -> tuple[str, Any, float | None]:
  """(relative name of the image, caption, score) of an entry."""
  name = entry.get("file_name")
  texts = [entry[key] for key in ("text", "caption") if key in entry]
  texts = texts or [None] * ("label" in entry)
  if not isinstance(name, str) or not texts:
    raise DataError(f"{where}: {NEEDED}; got {str(dict(entry))[:60]}")
  score = entry.get("score")
  if score is not None:
    try:
      score = float("nan") if isinstance(score, bool) else float(score)
    except (TypeError, ValueError):
      score = math.nan
    if not math.isfinite(score):
      raise DataError(f"{where}: {NEEDED}; got score={entry['score']!r}")
  name = name.replace("\\", "/")
  return posixpath.normpath(posixpath.join(folder, name)), texts[0], score


def _read_text(path: pathlib.Path) -> str:
  try:
    return read_regular(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not UTF-8: {error.reason}") from error
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error.strerror}") from error
