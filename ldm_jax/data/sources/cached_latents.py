"""Cached latents: the posterior moments of a data set, encoded once.

One folder, written by `ldm-jax prepare`, holds

  manifest.json   the first stage and the data set they were encoded from
  moments.npy     [n, h, w, 2 c], mean and log variance of every example
  NAME.npy        the other arrays of the examples, such as labels
  captions.npy, captions_ends.npy   the captions as one string of UTF-8

Crop and mirroring are fixed; the noise of the posterior is drawn for every
batch.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped, UInt8

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.numpy_files import read_npy
from ldm_jax.files.regular_files import check_regular
from ldm_jax.files.strict_json import parse_object

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class CachedLatents:
  """A source with "moments" in place of "image".

  Attributes:
    folder: see above.

  Raises (at first use):
    ConfigError: the folder holds no cached latents, or incomplete ones.
    DataError: a file of it cannot be read.
  """

  folder: str

  def __len__(self) -> int:
    return self.manifest["count"]

  def __getitem__(self, index: int) -> dict[str, Any]:
    (caption,) = self.captions([index]) or (None,)
    item = {name: array[index] for name, array in self._arrays.items()}
    return item if caption is None else item | {"caption": caption}

  def rows(self, indices: Integer[np.ndarray, " b"]) -> dict[str, Any]:
    """The arrays of many examples at once, without their captions."""
    return {name: array[indices] for name, array in self._arrays.items()}

  def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Captions of these examples; [] if the data set has none."""
    if not self.manifest["has_captions"]:
      return []
    text, ends = self._captions
    return [
      bytes(text[ends[i - 1] if i else 0 : ends[i]]).decode() for i in indices
    ]

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels of the source they were encoded from."""
    return class_names(self.manifest, self.folder)

  @functools.cached_property
  def manifest(self) -> dict[str, Any]:
    """The content of manifest.json."""
    manifest = read_manifest(self.folder)
    if manifest is None or "arrays" not in manifest:
      raise ConfigError(
        f"{self.folder!r} holds no latents; write them first: ldm-jax prepare"
      )
    _check_manifest(self.folder, manifest)
    if not manifest["is_complete"]:
      raise ConfigError(
        f"the latents in {self.folder!r} are not complete; run the command "
        "that wrote them again, it resumes"
      )
    return manifest

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    arrays = {name: self._read(name) for name in self.manifest["arrays"]}
    for name, array in arrays.items():
      if not array.ndim or len(array) != self.manifest["count"]:
        raise DataError(
          f"{self.folder}: {name}.npy is of shape {array.shape}; expected "
          f"{self.manifest['count']} rows"
        )
    return arrays

  @functools.cached_property
  def _captions(self) -> tuple[UInt8[np.ndarray, " c"], np.ndarray]:
    text, ends = self._read("captions"), self._read("captions_ends")
    is_whole = text.dtype == np.uint8 and ends.dtype.kind in "iu"
    is_whole = is_whole and text.ndim == ends.ndim == 1
    count = self.manifest["count"]
    if not is_whole or len(ends) != count or (count and ends[-1] != len(text)):
      raise DataError(f"the captions in {self.folder!r} are not those written")
    return text, ends

  def _read(self, name: str) -> Shaped[np.ndarray, "..."]:
    path = os.path.join(self.folder, f"{name}.npy")
    return read_npy(path, DataError, is_mapped=True)


def _check_manifest(folder: str, manifest: Mapping[str, Any]) -> None:
  """Raises DataError unless the entries are of the types that are written."""
  match manifest:
    case {
      "count": int(count),
      "is_complete": bool(),
      "has_captions": bool(),
      "arrays": dict(arrays),
    } if count >= 0 and all(name.isidentifier() for name in arrays):
      return
  raise DataError(
    f"{os.path.join(folder, MANIFEST)} is damaged; expected a count, "
    "is_complete, has_captions and arrays by name"
  )


def read_manifest(folder: str) -> dict[str, Any] | None:
  """The manifest.json of a folder; None where there is none.

  Raises:
    DataError: it cannot be read, or holds no object.
  """
  from etils import epath  # shards may be in a storage bucket

  path = epath.Path(folder) / MANIFEST
  try:
    check_regular(path)
    text = path.read_bytes()
  except FileNotFoundError:
    return None
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error}") from error
  return parse_object(text, str(path), DataError)


def class_names(manifest: Mapping[str, Any], folder: str) -> tuple[str, ...]:
  """The names of the labels that a manifest lists; () if it lists none.

  Raises:
    DataError: they are no texts.
  """
  names = manifest.get("classes", [])
  if isinstance(names, list) and all(isinstance(name, str) for name in names):
    return tuple(names)
  raise DataError(
    f"{os.path.join(folder, MANIFEST)} is damaged; expected the names of "
    f"classes, got {str(names)[:60]}"
  )


def write_manifest(folder: str, manifest: Mapping[str, Any]) -> None:
  """Writes manifest.json, atomically."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, MANIFEST)
  with replace_file(path, "utf-8") as file:
    json.dump(manifest, file, indent=1)


def write_captions(folder: str, captions: Sequence[str]) -> None:
  """Writes the captions of all examples, as `CachedLatents` reads them."""
  encoded = [caption.encode() for caption in captions]
  text = np.frombuffer(b"".join(encoded), np.uint8)
  ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
  for name, array in (("captions", text), ("captions_ends", ends)):
    path = os.path.join(folder, f"{name}.npy")
    with replace_file(path) as file:
      np.save(file, array)
