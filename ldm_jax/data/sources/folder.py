"""A folder of images: subfolders become labels, text files captions."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from ldm_jax.data.annotations import ENDINGS, READERS, read_annotation
from ldm_jax.data.images import EXTENSIONS, header_size, read_image
from ldm_jax.data.sources.folder_captions import Captions, read_captions
from ldm_jax.data.sources.folder_labels import Labels, numbered
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.fields.limits import Count

_PLANES = tuple(ENDINGS[key] for key in READERS)  # not images


@dataclasses.dataclass(frozen=True)
class Folder:
  """Every image below `path`, in the sorted order of its relative name.

  "label" is the label of a metadata file, a number or the index of a name among
  `classes`; else the index of an image's first-level folder among them, which
  is present if every image is in such a folder. "caption" is `<stem>.txt` or
  `<stem>.caption` next to the image, else caption.txt in its folder, else the
  text of a metadata.jsonl, .csv or .parquet, else ""; it is present if any
  image has one, and the images without are counted in a warning. "score" is
  the number of that name in the metadata, whose file_name is relative to its
  own folder. They do not depend on `only` and `without`, so two
  subsets of a folder agree. Names that begin with a dot are skipped, links to
  folders are followed.

  Annotations of an image name.jpg, for every image or for none: name.map.png
  ("segmap", one channel of classes), name.mask.png ("mask", white is masked),
  name.depth.png ("depth"), each of the image's size, and name.boxes.json
  ("boxes", see `read_boxes`, padded to `objects` rows).

  Attributes:
    path: the folder.
    only: relative names to keep, such as "cats/1.jpg"; all if empty.
    without: relative names to leave out, whether they exist or not.
    objects: rows of "boxes"; objects beyond them are left out.

  Raises (all at first use):
    ConfigError: there is no such folder, or an image of `only` is missing.
    DataError: there are no images, or annotations or metadata that do not fit
      them.
    ImageError: an image is bad; see `read_image`.
  """

  path: str
  only: tuple[str, ...] = ()
  without: tuple[str, ...] = ()
  objects: Count = 30

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self.names[index]
    item: dict[str, Any] = {"image": read_image(self._root / name)}
    if self._captions:
      item["caption"] = self._captions[name]
    if name in self._captions.scores:
      item["score"] = np.float32(self._captions.scores[name])
    item |= self._annotations(name, item["image"].shape[:2])
    if (labels := self._labels) is not None:
      item["label"] = np.int32(labels.numbers[name])
    return item

  def path_of(self, index: int) -> str:
    """The path of image `index`."""
    return str(self._root / self.names[index])

  def _annotations(self, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """The arrays of an image's annotation files."""
    stem = _stem(name)
    return {
      key: read_annotation(
        key, self._root / (stem + ENDINGS[key]), size, self.objects
      )
      for key in self._kinds
    }

  @functools.cached_property
  def _kinds(self) -> tuple[str, ...]:
    """The keys of ENDINGS of which every image has a file.

    Raises:
      DataError: some images have one and others do not.
    """
    kinds = []
    stems = [_stem(name) for name in self.names]
    files = frozenset(self._files)
    for key, ending in ENDINGS.items():
      missing = [stem for stem in stems if stem + ending not in files]
      if not missing:
        kinds.append(key)
      elif len(missing) < len(stems):
        raise DataError(
          f"{self.path} has {ending} files for {len(stems) - len(missing)} of "
          f"{len(stems)} images; {missing[0] + ending} is the first that is "
          "missing"
        )
    return tuple(kinds)

  @functools.cached_property
  def sizes(self) -> Int[np.ndarray, "n 2"]:
    """Heights and widths, of all headers; see `header_size`."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
      paths = (self._root / name for name in self.names)
      return np.array(list(pool.map(header_size, paths)))

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    """The relative names of the images kept; index i is image i."""
    missing = sorted(set(self.only) - set(self._images))
    if missing:
      raise ConfigError(
        f"{self.path} lacks {len(missing)} of the {len(self.only)} images "
        f"named in only, {missing[0]!r} first; names are relative, with /"
      )
    keep = set(self.only or self._images) - set(self.without)
    if not keep:
      raise DataError(
        f"no image of {self.path} is left: it has {len(self._images)}, "
        f"and without names {len(self.without)}; shorten without"
      )
    return tuple(name for name in self._images if name in keep)

  @property
  def classes(self) -> tuple[str, ...]:
    """The sorted names of the labels, or () if there are none."""
    return () if self._labels is None else self._labels.classes

  @functools.cached_property
  def _labels(self) -> Labels | None:
    """Of all images; None if an image has none."""
    if self._captions.labels:
      return numbered(self._captions.labels, self._images, self.path)
    folders = {name: _first_folder(name) for name in self._images}
    if "" in folders.values():
      return None
    classes = tuple(sorted(set(folders.values())))
    places = {folder: place for place, folder in enumerate(classes)}
    numbers = {name: places[folder] for name, folder in folders.items()}
    return Labels(numbers, classes)

  @property
  def _root(self) -> pathlib.Path:
    return pathlib.Path(self.path).expanduser()

  @functools.cached_property
  def _files(self) -> tuple[str, ...]:
    if "://" in self.path:
      raise ConfigError(
        f"{self.path} is not on this machine, where folders are read; mount "
        "it, or pack its images into tars, which are read from buckets"
      )
    if not self._root.is_dir():
      problem = "is not a folder" if self._root.exists() else "does not exist"
      raise ConfigError(
        f"{self.path} {problem}; expected a folder of images; "
        f"relative paths start from {os.getcwd()}"
      )
    return tuple(sorted(_walk(self._root)))

  @functools.cached_property
  def _images(self) -> tuple[str, ...]:
    names = tuple(
      name
      for name in self._files
      if _suffix(name) in EXTENSIONS and not name.endswith(_PLANES)
    )
    if not names:
      raise DataError(
        f"0 images among the {len(self._files)} files of {self.path}; "
        f"looked in it and below for {' '.join(sorted(EXTENSIONS))}"
      )
    return names

  @functools.cached_property
  def _captions(self) -> Captions:
    return read_captions(self._root, self._files, self._images)


def _first_folder(name: str) -> str:
  return name.partition("/")[0] if "/" in name else ""


def _stem(name: str) -> str:
  return str(pathlib.PurePosixPath(name).with_suffix(""))


def _suffix(name: str) -> str:
  return pathlib.PurePosixPath(name).suffix.lower()


def _walk(root: pathlib.Path) -> Iterator[str]:
  """Relative names with /, each real folder once, so that links cannot loop."""
  seen = set()
  for folder, below, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    below[:] = [] if real in seen else sorted(below)
    below[:] = [name for name in below if not name.startswith(".")]
    if real not in seen:
      relative = pathlib.Path(folder).relative_to(root)
      names = (name for name in files if not name.startswith("."))
      yield from ((relative / name).as_posix() for name in names)
    seen.add(real)
