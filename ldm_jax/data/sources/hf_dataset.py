"""Data sets of Hugging Face: Parquet files, and Arrow files of save_to_disk."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import Int

from ldm_jax.data.annotations import Member
from ldm_jax.data.images import decode_image, header_size
from ldm_jax.data.sources.folder_captions import caption_of
from ldm_jax.data.sources.tables import (
  ARROW,
  PARQUET,
  GroupCache,
  Table,
  features_of,
  open_table,
)
from ldm_jax.errors import ConfigError, DataError, ImageError
from ldm_jax.fields.limits import Positive

CAPTIONS = ("text", "caption")  # the columns of which "" takes the first
LABELS = ("label",)
CACHED = "cache-"  # begins the files that `Dataset.map` leaves in a folder
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT = r"(?:^|[/_.-]){split}(?:[/_.-]|$)"
_COMMON = ("train", "test", "validation", "valid", "val", "dev")


@dataclasses.dataclass(frozen=True)
class HfDataset:
  """A data set as `datasets` writes it, read without that package.

  Nothing is downloaded or executed; a repository's Python scripts are not
  read. A Parquet file is read by row groups, each of which is kept until
  `cache_gigabytes` are full, so a larger data set should be packed once by
  `ldm-jax prepare`. Arrow files are mapped into memory.

  Attributes:
    path: a file, a folder that is searched for .parquet, or else for .arrow,
      or owner/dataset of the hub, of which a local copy must exist.
    split: whose files have it as a part of their relative names, such as
      data/train-00000-of-00005.parquet. If no name has a split's, all files
      are "train".
    image: a column of images (`datasets.Image`) or of the bytes of files.
    caption: a column of texts, or of lists whose first text is taken; "" takes
      "text" or "caption" if there is one, None leaves it out.
    label: a column of whole numbers; "" takes "label" if there is one. The
      names of a `datasets.ClassLabel` are `classes`.
    cache_gigabytes: of row groups that are kept.

  Raises (all at first use):
    ConfigError: there are no such files, splits or columns.
    DataError: a file is malformed, or holds what would have to be unpickled.
    ImageError: an image is bad; see `decode_image`.
  """

  path: str
  split: str = "train"
  image: str = "image"
  caption: str | None = ""
  label: str | None = ""
  cache_gigabytes: Positive = 4.0

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    row, where = self._row(index)
    file = _image(row[self.image], self.image, where)
    item: dict[str, Any] = {"image": decode_image(file, where)}
    if self._caption is not None:
      item["caption"] = caption_of(row[self._caption], where) or ""
    if self._label is not None:
      item["label"] = _label(row[self._label], where)
    return item

  def path_of(self, index: int) -> str:
    """The file of example `index`, and its row there."""
    table, row = self._place(index)
    return f"{self.files[table]}:{row}"

  @functools.cached_property
  def files(self) -> tuple[str, ...]:
    """The files of the split, sorted."""
    root = pathlib.Path(_local(self.path))
    if root.is_file():
      return (str(root),)
    names: list[str] = []
    for ending in (PARQUET, ARROW):
      found = root.rglob(f"[!.]*{ending}")
      found = (p for p in found if not p.name.startswith(CACHED))
      names = names or sorted(p.relative_to(root).as_posix() for p in found)
    if not names:
      raise ConfigError(f"{self.path} has no file {PARQUET} or {ARROW}")
    kept = [name for name in names if _is_of(self.split, name)]
    known = [s for s in _COMMON if any(_is_of(s, name) for name in names)]
    if not kept and (known or self.split != "train"):
      raise ConfigError(
        f"{self.path} has no files of the split {self.split!r}; it has "
        f"{', '.join(known) or 'no splits'}, and {names[0]} is its first file"
      )
    return tuple(str(root / name) for name in kept or names)

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels, or () if the data set has none."""
    feature = features_of(self._tables[0].schema).get(self._label or "", {})
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()

  @functools.cached_property
  def sizes(self) -> Int[np.ndarray, "n 2"]:
    """Heights and widths, see `header_size`; this reads every file."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
      return np.array(list(pool.map(self._size, range(len(self)))))

  def _size(self, index: int) -> tuple[int, int]:
    row, where = self._row(index)
    try:
      return header_size(_image(row[self.image], self.image, where))
    except ImageError:  # reported when it is read
      return 1, 1

  def _row(self, index: int) -> tuple[dict[str, Any], str]:
    table, row = self._place(index)
    return self._tables[table].row(row), f"{self.files[table]}:{row}"

  def _place(self, index: int) -> tuple[int, int]:
    """The number of a file, and that of a row in it."""
    if not 0 <= index < len(self):
      raise IndexError(f"{self.path} has {len(self)} examples, not {index}")
    number = int(np.searchsorted(self._ends, index, side="right"))
    begin = int(self._ends[number - 1]) if number else 0
    return number, int(index) - begin

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    ends = np.cumsum([len(table) for table in self._tables])
    if not ends[-1]:
      raise DataError(f"{self.path} has no rows")
    return ends

  @functools.cached_property
  def _tables(self) -> list[Table]:
    cache = GroupCache(self.cache_gigabytes * 1e9)
    wanted = {self.image, self.caption, self.label, *CAPTIONS, *LABELS}
    columns = [name for name in wanted if name]
    tables = [open_table(path, columns, cache) for path in self.files]
    for path, table in zip(self.files, tables, strict=True):
      for field in ("image", "caption", "label"):
        name = getattr(self, field)
        if name and name not in table.schema.names:
          raise ConfigError(
            f"{path} has no column {name!r} for {field}; it has "
            f"{', '.join(table.schema.names)}"
          )
    return tables

  @functools.cached_property
  def _caption(self) -> str | None:
    return self._chosen(self.caption, CAPTIONS)

  @functools.cached_property
  def _label(self) -> str | None:
    return self._chosen(self.label, LABELS)

  def _chosen(self, name: str | None, defaults: tuple[str, ...]) -> str | None:
    """A column's name; for "" the first default that all files have."""
    if name != "":
      return name
    names = [table.schema.names for table in self._tables]
    return next((d for d in defaults if all(d in n for n in names)), None)


def _is_of(split: str, name: str) -> bool:
  """Whether a relative name has a split as a part."""
  return re.search(_SPLIT.format(split=re.escape(split)), name) is not None


def _local(path: str) -> str:
  """`path` if it exists, else the local copy of a repository of the hub."""
  place = os.path.expanduser(path)
  if os.path.exists(place):
    return place
  if not _REPOSITORY.fullmatch(path):
    raise ConfigError(f"there is no file or folder {path!r}")
  try:
    import huggingface_hub as hub

    return hub.snapshot_download(
      path, repo_type="dataset", local_files_only=True
    )
  except ImportError:
    reason = "pip install huggingface_hub"
  except Exception:  # the hub's, of many kinds
    reason = f"hf download --repo-type dataset {path}"
  raise ConfigError(
    f"there is no file or folder {path!r}, and nothing is downloaded here; for "
    f"a data set of the hub: {reason}"
  )


def _image(value: Any, column: str, where: str) -> Member:
  """The bytes of an image's file; raises ImageError if the row has none."""
  data = value.get("bytes") if isinstance(value, dict) else value
  if isinstance(data, bytes):
    return Member(data, where)
  detail = f"the column {column!r} holds {type(data).__name__}, not bytes"
  if isinstance(value, dict) and value.get("path"):
    detail = (
      f"the column {column!r} holds paths of images; Dataset.save_to_disk and "
      "push_to_hub write their bytes"
    )
  raise ImageError(where, "unreadable", detail)


def _label(value: Any, where: str) -> np.int32:
  if type(value) is not int or abs(value) >= 2**31:
    raise ImageError(
      where, "mislabelled", f"the label is {str(value)[:60]!r}, no whole number"
    )
  return np.int32(value)
