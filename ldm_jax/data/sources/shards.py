"""Data sets packed into few large files: WebDataset tars, array records.

An example is a handful of small files that share a name: in a tar its members
"a/0001.jpg", "a/0001.txt", ...; in an array record one msgpack map from endings
to bytes, {"jpg": ..., "txt": ...}. The endings are a folder's: a picture; "txt"
a caption; "cls" a label in digits; "json" an object with any of caption (or
text), label and score; and what may lie beside a picture, such as "map.png".
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgpack
import numpy as np
from jaxtyping import Int

from ldm_jax.data.annotations import ENDINGS, Member, read_beside
from ldm_jax.data.images import EXTENSIONS, decode_image, header_size
from ldm_jax.data.sources.cached_latents import MANIFEST, read_manifest

TAR, RECORD = ".tar", ".array_record"
PICTURES = frozenset(ending.removeprefix(".") for ending in EXTENSIONS)
BESIDE = {ending.removeprefix("."): key for key, ending in ENDINGS.items()}

Files = Mapping[str, bytes]  # ending: content


@dataclasses.dataclass(frozen=True)
class Shards:
  """Every example of some tars or array records, in the order of their names.

  Files are read at random, as little of them as an example needs; a tar's
  headers are all read once, at first use.

  Attributes:
    path: a file, a pattern such as "data/*.tar", or a folder of files of one
      kind; on this machine or, for tars, wherever etils' epath reads, such as
      gs://bucket/data.
    objects: rows of "boxes"; objects beyond them are left out.

  Raises (all at first use):
    ValueError: there are no such files, or an example is none.
    ImageError: a picture is bad; see `decode_image`.
  """

  path: str
  objects: int = 30

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f"{self.path} has {len(self)} examples, not {index}")
    return example(*self._files(index), self.objects)

  @functools.cached_property
  def sizes(self) -> Int[np.ndarray, "n 2"]:
    """Heights and widths, see `header_size`; every example is read for it."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
      return np.array(list(pool.map(self._size, range(len(self)))))

  def _size(self, index: int) -> tuple[int, int]:
    files, name = self._files(index)
    return header_size(_picture(files, name))

  def _files(self, index: int) -> "tuple[Files, str]":
    shard = int(np.searchsorted(self._ends, index, side="right"))
    begin = self._ends[shard - 1] if shard else 0
    return self._shards[shard].read(int(index - begin))

  @functools.cached_property
  def _shards(self) -> "list[_Shard]":
    names = found(self.path)
    kind = _Tar if names[0].endswith(TAR) else _Record
    return [kind(name) for name in names]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Behind the last example of every shard, in numbers of the whole."""
    return np.cumsum([len(shard) for shard in self._shards])


def found(path: str) -> list[str]:
  """The shards of a file, folder or pattern, sorted.

  Raises:
    ValueError: there are none, or of both kinds, or not all yet.
  """
  from etils import epath

  place = epath.Path(path)
  if "*" in place.name:
    names = place.parent.glob(place.name)
  elif place.is_dir():
    names = place.iterdir()
    manifest = read_manifest(path) if (place / MANIFEST).exists() else None
    if manifest and not manifest["is_complete"]:
      raise ValueError(
        f"{path} is not complete; run the command that wrote it again, it goes "
        "on where it stopped"
      )
  else:
    names = [place] if place.exists() else []
  names = sorted(str(n) for n in names if str(n).endswith((TAR, RECORD)))
  kinds = {name.endswith(TAR) for name in names}
  if len(kinds) != 1:
    what = "no" if not kinds else "both kinds of"
    raise ValueError(
      f"{path} has {what} shards; needed are files {TAR} or files {RECORD}, by "
      'a folder or a pattern such as "data/*.tar"'
    )
  return names


def example(files: Files, name: str, objects: int = 30) -> dict[str, Any]:
  """The arrays of an example, and its caption.

  Raises:
    ValueError, ImageError: a file is bad, or there is no picture; `name` says
      of which example.
  """
  picture = _picture(files, name)
  item: dict[str, Any] = {"image": decode_image(picture, str(picture))}
  told = _told(files, name)
  if "caption" in told:
    item["caption"] = " ".join(str(told["caption"]).split())
  for key, kind in (("label", np.int32), ("score", np.float32)):
    if key in told:
      item[key] = kind(told[key])
  size = item["image"].shape[:2]
  for ending, key in BESIDE.items():
    if ending in files:
      member = Member(files[ending], f"{name}.{ending}")
      item[key] = read_beside(key, member, size, objects)
  return item


def _picture(files: Files, name: str) -> Member:
  pictures = sorted(files.keys() & PICTURES)
  if not pictures:
    raise ValueError(
      f"{name} has no picture among {', '.join(sorted(files)) or 'nothing'}; "
      f"needed is one of {' '.join(sorted(PICTURES))}"
    )
  return Member(files[pictures[0]], f"{name}.{pictures[0]}")


def _told(files: Files, name: str) -> dict[str, Any]:
  """Caption, label and score, whichever way they are told."""
  told: dict[str, Any] = {}
  try:
    if "json" in files:
      entry = dict(json.loads(files["json"]))
      told = {
        key: entry[key] for key in ("caption", "label", "score") if key in entry
      }
      if "text" in entry:
        told.setdefault("caption", entry["text"])
    if "txt" in files:
      told["caption"] = files["txt"].decode("utf-8-sig")
    if "cls" in files:
      told["label"] = int(files["cls"])
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{name}: txt must be UTF-8, cls a whole number and json an object: "
      f"{error}"
    ) from error
  return told


class _Shard(Protocol):
  def __len__(self) -> int: ...

  def read(self, index: int) -> tuple[Files, str]:
    """An example's files, and what to call it."""


class _Place(NamedTuple):
  """Where a member's bytes lie in a tar."""

  ending: str
  offset: int
  size: int


class _Tar:
  """A tar whose members are examples' files, neighbours if they share a name.

  As in WebDataset a name ends at the first dot of its last part.
  """

  def __init__(self, path: str):
    self._path = path

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, index: int) -> tuple[Files, str]:
    from etils import epath

    stem, places = self._examples[index]
    files = {}
    with epath.Path(self._path).open("rb") as file:
      for ending, offset, size in places:
        file.seek(offset)
        files[ending] = file.read(size)
        if len(files[ending]) < size:
          raise ValueError(f"{self._path} ends within {stem}.{ending}")
    return files, f"{self._path}:{stem}"

  @functools.cached_property
  def _examples(self) -> list[tuple[str, list[_Place]]]:
    """(name, places) of every example, in the order of the file."""
    from etils import epath

    found: list[tuple[str, list[_Place]]] = []
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
          place = _Place(ending.lower(), member.offset_data, member.size)
          found[-1][1].append(place)
    except (tarfile.TarError, OSError, EOFError) as error:
      raise ValueError(
        f"{self._path} is no tar that can be read (compressed ones cannot, "
        f"being read at random): {error}"
      ) from error
    return found


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
      raise ValueError(f"{name} is no msgpack map: {error}") from error
    if not is_map:
      raise ValueError(f"{name} must map endings to bytes, such as 'jpg'")
    return files, name

  @functools.cached_property
  def _data(self) -> Any:
    from array_record.python import array_record_data_source

    try:
      source = array_record_data_source.ArrayRecordDataSource([self._path])
      len(source)
    except (RuntimeError, ValueError) as error:
      raise ValueError(f"{self._path} cannot be read: {error}") from error
    return source


def write_record(path: str, examples: list[Files]) -> None:
  """An array record of examples, each readable by itself; never half of it."""
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(
    path + ".part", "group_size:1,uncompressed"
  )
  for files in examples:
    writer.write(msgpack.packb(dict(files)))
  writer.close()
  os.replace(path + ".part", path)
