"""Data sets of MosaicML's streaming (MDS shards), read-only.

A shard holds the number of its samples and their offsets, as uint32; a sample
the sizes of its columns without a fixed size, as uint32, and then its columns.
Little endian. index.json names the shards and the encoding of each column.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ldm_jax.data.annotations import Member
from ldm_jax.data.images import decode_image, rgb
from ldm_jax.data.open_images import MAX_PIXELS
from ldm_jax.errors import ConfigError, DataError, ImageError
from ldm_jax.files.regular_files import open_regular
from ldm_jax.files.strict_json import read_object

INDEX = "index.json"
FILES = ("jpeg", "png", "bytes")  # encodings that are an image's file
RAW = "pil"  # width, height, length of the mode as uint32; mode; pixels
MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # of "pil", with their channels
NUMBERS = {
  f"{kind}{bits}": f"<{kind[0]}{bits // 8}"
  for kind in ("int", "uint")
  for bits in (8, 16, 32, 64)
} | {"int": "<i8"}
CAPTIONS, LABELS = ("text", "caption"), ("label", "class")


class Shard(NamedTuple):
  """A file of samples.

  Attributes:
    columns: (name, encoding, size in bytes or 0) in the order of a sample.
  """

  path: str
  samples: int
  columns: tuple[tuple[str, str, int], ...]


@dataclasses.dataclass(frozen=True)
class MdsSource:
  """The samples of a folder that `streaming.MDSWriter` wrote.

  Access is random and reads one sample. Shards must be there uncompressed.
  Columns that are not named are not decoded, pickles among them.

  Attributes:
    path: a folder with index.json.
    image: a column of the encoding jpeg, png, pil or bytes; "" takes the first
      of jpeg, png or pil.
    caption: a column of str; "" takes "text" or "caption" if there is one, None
      leaves it out.
    label: a column of whole numbers; "" takes "label" or "class" if there is
      one.

  Raises (all at first use):
    ConfigError: there is no such folder or column, or a shard is compressed.
    DataError: a file is malformed.
    ImageError: an image is bad; see `decode_image`.
  """

  path: str
  image: str = ""
  caption: str | None = ""
  label: str | None = ""

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    shard, number = self._place(index)
    where = f"{shard.path}:{number}"
    values = _columns(shard, number)
    image, caption, label = self._chosen
    kind, data = values[image]
    item: dict[str, Any] = {"image": _image(kind, data, where)}
    if caption is not None:
      item["caption"] = _text(values[caption][1], where)
    if label is not None:
      kind, data = values[label]
      item["label"] = np.frombuffer(data, NUMBERS[kind])[0].astype(np.int32)
    return item

  def path_of(self, index: int) -> str:
    """The shard of example `index`, and its number there."""
    shard, number = self._place(index)
    return f"{shard.path}:{number}"

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the shards."""
    return tuple(os.path.basename(shard.path) for shard in self._shards)

  def _place(self, index: int) -> tuple[Shard, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"{self.path} has {len(self)} examples, not {index}")
    number = int(np.searchsorted(self._ends, index, side="right"))
    begin = int(self._ends[number - 1]) if number else 0
    return self._shards[number], int(index) - begin

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([shard.samples for shard in self._shards])

  @functools.cached_property
  def _shards(self) -> tuple[Shard, ...]:
    folder = pathlib.Path(self.path).expanduser()
    try:
      index = read_object(folder / INDEX, DataError)
    except FileNotFoundError:
      raise ConfigError(
        f"{self.path} has no {INDEX}, which streaming's MDSWriter writes"
      ) from None
    entries = index.get("shards")
    if not isinstance(entries, list) or not entries:
      raise DataError(f"{folder / INDEX} lists no shards")
    shards = tuple(_shard(folder, entry) for entry in entries)
    if len({shard.columns for shard in shards}) > 1:
      raise DataError(f"the shards of {self.path} have different columns")
    return shards

  @functools.cached_property
  def _chosen(self) -> tuple[str, str | None, str | None]:
    """The columns of image, caption and label."""
    kinds = {name: kind for name, kind, _ in self._shards[0].columns}
    images = [n for n, kind in kinds.items() if kind in (*FILES[:2], RAW)]
    found = (
      self._column("image", kinds, images[:1], (*FILES, RAW)),
      self._column("caption", kinds, CAPTIONS, ("str",)),
      self._column("label", kinds, LABELS, tuple(NUMBERS)),
    )
    if found[0] is None:
      raise ConfigError(
        f"{self.path} has no column of images; {_listed(kinds)}"
      )
    return found

  def _column(
    self,
    field: str,
    kinds: dict[str, str],
    defaults: "tuple[str, ...] | list[str]",
    wanted: tuple[str, ...],
  ) -> str | None:
    """The column of a field; raises ConfigError for another encoding."""
    name = getattr(self, field)
    if name == "":
      known = (d for d in defaults if kinds.get(d) in wanted)
      return next(known, None)
    if name is not None and kinds.get(name) not in wanted:
      raise ConfigError(
        f"{field} needs a column of the encoding {', '.join(wanted)}, got "
        f"{name!r}; {_listed(kinds)}"
      )
    return name


def _listed(kinds: dict[str, str]) -> str:
  pairs = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
  return f"there are {pairs or 'none'}"


def _shard(folder: pathlib.Path, entry: Any) -> Shard:
  """A shard of the index; raises DataError for a malformed one."""
  match entry:
    case {
      "format": "mds",
      "version": 2,
      "samples": int(samples),
      "raw_data": {"basename": str(name)},
      "column_names": list(names),
      "column_encodings": list(kinds),
      "column_sizes": list(sizes),
    } if samples >= 0 and len(names) == len(kinds) == len(sizes):
      pass
    case _:
      raise DataError(
        f"{folder / INDEX} has a shard that is not of format mds, version 2: "
        f"{str(entry)[:60]}"
      )
  is_typed = all(isinstance(text, str) for text in (*names, *kinds))
  is_typed &= all(s is None or (type(s) is int and s >= 0) for s in sizes)
  place = pathlib.PurePosixPath(name)
  if not is_typed or place.is_absolute() or ".." in place.parts:
    raise DataError(f"{folder / INDEX} has a malformed shard {name[:60]!r}")
  path = folder / place
  if not path.exists():
    kind = "compressed" if entry.get("zip_data") else "missing"
    raise ConfigError(
      f"the shard {path} is {kind}; download and decompress it (streaming does "
      "when it reads the data set with keep_zip=False)"
    )
  sizes = [size or 0 for size in sizes]
  return Shard(str(path), samples, tuple(zip(names, kinds, sizes, strict=True)))


def _columns(shard: Shard, number: int) -> dict[str, tuple[str, bytes]]:
  """The encoding and the bytes of each column of a sample, by its name.

  Raises:
    DataError: the sizes do not fit.
  """
  try:
    with open_regular(shard.path) as file:
      file.seek(4 * (1 + number))
      begin, end = np.frombuffer(file.read(8), "<u4").tolist()
      file.seek(begin)
      data = file.read(max(0, end - begin))
  except (OSError, ValueError) as error:
    raise DataError(f"{shard.path} cannot be read: {error}") from error
  sizes, at = [], 0
  for _, _, size in shard.columns:
    if not size:
      size, at = int.from_bytes(data[at : at + 4], "little"), at + 4
    sizes.append(size)
  if at + sum(sizes) != len(data) or len(data) != end - begin:
    raise DataError(
      f"{shard.path}:{number} has {len(data)} bytes, and its columns "
      f"{at + sum(sizes)}; the shard is damaged"
    )
  found = {}
  for (name, kind, _), size in zip(shard.columns, sizes, strict=True):
    found[name], at = (kind, data[at : at + size]), at + size
  return found


def _image(kind: str, data: bytes, where: str) -> np.ndarray:
  if kind != RAW:
    return decode_image(Member(data, where), where)
  width, height, length = np.frombuffer(data[:12].ljust(12), "<u4").tolist()
  mode = data[12 : 12 + length].decode("ascii", "replace")
  if mode not in MODES or width * height > MAX_PIXELS:
    detail = f"{width} x {height} pixels of mode {mode[:8]!r}"
    raise ImageError(where, "unsupported", detail)
  pixels = data[12 + length :]
  if not pixels or len(pixels) != width * height * MODES[mode]:
    raise ImageError(where, "truncated", f"{len(pixels)} bytes of pixels")
  return rgb(np.asarray(Image.frombytes(mode, (width, height), pixels)), where)


def _text(data: bytes, where: str) -> str:
  try:
    return " ".join(data.decode().split())
  except UnicodeDecodeError as error:
    raise ImageError(where, "mislabelled", "its text is not UTF-8") from error
