"""Data sets packed into few large files: WebDataset tars, array records.

An example is a set of small files of one name: in a tar its members
"a/0001.jpg", "a/0001.txt", ...; in an array record one msgpack map from endings
to bytes, {"jpg": ..., "txt": ...}. Endings are: those of images; "txt", a
caption; "cls", a label in digits; "json", an object with any of caption (or
text), label and score; and those of annotations, such as "map.png".
"""

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import tarfile
from typing import Any, NamedTuple, Protocol

import msgpack
import numpy as np
from jaxtyping import Int

from ldm_jax.data.images import header_size
from ldm_jax.data.sources.cached_latents import (
  MANIFEST,
  class_names,
  read_manifest,
)
from ldm_jax.data.sources.packed_examples import (
  READ,
  Files,
  example,
  image_of,
  split_dotted,
)
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.fields.limits import Count
from ldm_jax.files.regular_files import check_regular

logger = logging.getLogger(__name__)

TAR, RECORD = ".tar", ".array_record"


@dataclasses.dataclass(frozen=True)
class Shards:
  """The examples of tars or array records, in the order of the files' names.

  Access is random and reads the bytes of one example; the headers of a tar are
  read once, at first use.

  Attributes:
    path: a file, a pattern such as "data/*.tar", or a folder of files of one
      kind; local or, for tars, any URL that etils.epath reads (gs://...).
    objects: rows of "boxes"; objects beyond them are left out.

  Raises (all at first use):
    ConfigError: there are no such files.
    DataError: a file or an example of it is malformed.
    ImageError: an image is bad; see `decode_image`.
  """

  path: str
  objects: Count = 30

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f"{self.path} has {len(self)} examples, not {index}")
    return example(*self._files(index), self.objects)

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels, where `prepare` has written the folder."""
    from etils import epath

    is_folder = epath.Path(self.path).is_dir()
    manifest = read_manifest(self.path) if is_folder else None
    return class_names(manifest or {}, self.path)

  @functools.cached_property
  def sizes(self) -> Int[np.ndarray, "n 2"]:
    """Heights and widths, see `header_size`; this reads every example."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
      return np.array(list(pool.map(self._size, range(len(self)))))

  def _size(self, index: int) -> tuple[int, int]:
    files, name = self._files(index)
    return header_size(image_of(files, name))

  def _files(self, index: int) -> "tuple[Files, str]":
    shard = int(np.searchsorted(self._ends, index, side="right"))
    begin = self._ends[shard - 1] if shard else 0
    return self._shards[shard].read(int(index - begin))

  @functools.cached_property
  def _shards(self) -> "list[_Shard]":
    names = shard_files(self.path)
    kind = _Tar if names[0].endswith(TAR) else _Record
    return [kind(name) for name in names]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Cumulative number of examples, each shard included."""
    return np.cumsum([len(shard) for shard in self._shards])


def shard_files(path: str) -> list[str]:
  """The shards of a file, folder or pattern, sorted.

  Raises:
    ConfigError: there are none, or of both kinds, or they are incomplete.
  """
  from etils import epath

  place = epath.Path(path)
  if "*" in place.name:
    names = place.parent.glob(place.name)
  elif place.is_dir():
    names = place.iterdir()
    manifest = read_manifest(path) if (place / MANIFEST).exists() else None
    if manifest is not None and manifest.get("is_complete") is not True:
      raise ConfigError(
        f"{path} is not complete; run the command that wrote it again, it "
        "resumes"
      )
  else:
    names = [place] if place.exists() else []
  names = sorted(str(n) for n in names if str(n).endswith((TAR, RECORD)))
  for name in names:
    check_regular(name)
  kinds = {name.endswith(TAR) for name in names}
  if len(kinds) != 1:
    number = "no" if not kinds else "both kinds of"
    raise ConfigError(
      f"{path} has {number} shards; expected files {TAR} or files {RECORD}, "
      'by a folder or a pattern such as "data/*.tar"'
    )
  return names


class _Shard(Protocol):
  """A file of examples."""

  def __len__(self) -> int: ...

  def read(self, index: int) -> tuple[Files, str]:
    """An example's files, and its name in error messages."""


class _Extent(NamedTuple):
  """The bytes of a member within a tar."""

  ending: str
  offset: int
  size: int


class _Tar:
  """A WebDataset tar: files of one name follow each other.

  A name ends at the first dot after the last slash.
  """

  def __init__(self, path: str):
    self._path = path

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, index: int) -> tuple[Files, str]:
    from etils import epath

    stem, extents = self._examples[index]
    files = {}
    with epath.Path(self._path).open("rb") as file:
      for ending, offset, size in extents:
        file.seek(offset)
        files[ending] = file.read(size)
        if len(files[ending]) < size:
          raise DataError(f"{self._path} ends within {stem}.{ending}")
    return files, f"{self._path}:{stem}"

  @functools.cached_property
  def _examples(self) -> list[tuple[str, list[_Extent]]]:
    """(name, extents) of every example, in the order of the file."""
    from etils import epath

    found: list[tuple[str, list[_Extent]]] = []
    try:
      with (
        epath.Path(self._path).open("rb") as file,
        tarfile.open(fileobj=file, mode="r:") as members,
      ):
        for member in members:
          folder, slash, last = member.name.rpartition("/")
          stem, _, ending = last.partition(".")
          if not member.isfile() or not stem:
            continue
          name = folder + slash + stem
          if not found or found[-1][0] != name:
            found.append((name, []))
          size = member.size
          extent = _Extent(ending.lower(), member.offset_data, size)
          found[-1][1].append(extent)
    except (tarfile.TarError, OSError, EOFError) as error:
      raise DataError(
        f"{self._path} is not an uncompressed tar, which random access needs: "
        f"{error}"
      ) from error
    found = [each for entry in found for each in _examples_of(*entry)]
    others = collections.Counter(
      extent.ending
      for _, extents in found
      for extent in extents
      if extent.ending not in READ
    )
    if others:
      names = ", ".join(f"{name} ({n})" for name, n in others.most_common(5))
      logger.warning("%s: files that are not read: %s", self._path, names)
    return found


def _examples_of(
  name: str, extents: "list[_Extent]"
) -> "list[tuple[str, list[_Extent]]]":
  """One example, or several whose names hold dots."""
  by_ending = {extent.ending: extent for extent in extents}
  several = split_dotted(name, tuple(by_ending))
  if several is None:
    return [(name, extents)]
  return [
    (each, [by_ending[old]._replace(ending=new) for new, old in files.items()])
    for each, files in several.items()
  ]


class _Record:
  """An array record of msgpack maps, as `prepare` writes it."""

  def __init__(self, path: str):
    self._path = path

  def __len__(self) -> int:
    return len(self._data)

  def read(self, index: int) -> tuple[Files, str]:
    name = f"{self._path}:{index}"
    try:
      files = msgpack.unpackb(self._data[index])
      is_map = all(isinstance(value, bytes) for value in files.values())
    except (ValueError, AttributeError, msgpack.UnpackException) as error:
      raise DataError(f"{name} is not a msgpack map: {error}") from error
    if not is_map:
      raise DataError(f"{name} must map endings to bytes, such as 'jpg'")
    return files, name

  @functools.cached_property
  def _data(self) -> Any:
    from array_record.python import array_record_data_source

    try:
      source = array_record_data_source.ArrayRecordDataSource([self._path])
      len(source)
    except (RuntimeError, ValueError) as error:
      raise DataError(f"{self._path} cannot be read: {error}") from error
    return source
