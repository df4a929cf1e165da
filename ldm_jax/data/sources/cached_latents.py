"""Cached posterior moments: a source that needs no first stage any more.

One folder holds what `python -m ldm_jax.cli.prepare` wrote:

  manifest.json   whose latents they are, and of what
  moments.npy     [n, h, w, k], mean and log-variance of every example
  NAME.npy        what else the examples have, labels and maps among it
  captions.npy, captions_ends.npy   the captions as one string of UTF-8

Crop and mirror were fixed when it was written; noise is drawn anew whenever an
example is seen.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped, UInt8

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class CachedLatents:
  """Examples with "moments" in place of an image.

  Raises (at first use):
    ValueError: the folder holds no cache, or one that is not complete.
  """

  folder: str

  def __len__(self) -> int:
    return self.manifest["count"]

  def __getitem__(self, index: int) -> dict[str, Any]:
    (caption,) = self.captions([index]) or (None,)
    item = {name: array[index] for name, array in self._arrays.items()}
    return item if caption is None else item | {"caption": caption}

  def rows(self, indices: Integer[np.ndarray, " b"]) -> dict[str, Any]:
    """Many examples at once, without their captions."""
    return {name: array[indices] for name, array in self._arrays.items()}

  def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Of these examples; empty if none has one."""
    if not self.manifest["has_captions"]:
      return []
    text, ends = self._captions
    return [
      bytes(text[ends[i - 1] if i else 0 : ends[i]]).decode() for i in indices
    ]

  @functools.cached_property
  def manifest(self) -> dict[str, Any]:
    """What manifest.json says."""
    manifest = read_manifest(self.folder)
    if manifest is None or "arrays" not in manifest:
      raise ValueError(
        f"{self.folder!r} holds no latents; write them first: python -m "
        "ldm_jax.cli.prepare"
      )
    if not manifest["is_complete"]:
      raise ValueError(
        f"the latents in {self.folder!r} are not complete; run the command "
        "that wrote them again, it goes on where it stopped"
      )
    return manifest

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    return {name: self._read(name) for name in self.manifest["arrays"]}

  @functools.cached_property
  def _captions(self) -> tuple[UInt8[np.ndarray, " c"], np.ndarray]:
    return self._read("captions"), self._read("captions_ends")

  def _read(self, name: str) -> Shaped[np.ndarray, "..."]:
    path = os.path.join(self.folder, f"{name}.npy")
    try:
      return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
      raise ValueError(
        f"the latents' {path} cannot be read: {error}"
      ) from error


def read_manifest(folder: str) -> dict[str, Any] | None:
  """What a cache says of itself; None where there is none.

  Raises:
    ValueError: it is damaged.
  """
  from etils import epath  # a set of tars may lie in a bucket

  path = epath.Path(folder) / MANIFEST
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def write_manifest(folder: str, manifest: Mapping[str, Any]) -> None:
  """Never half of it."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, MANIFEST)
  with open(path + ".part", "w", encoding="utf-8") as file:
    json.dump(manifest, file, indent=1)
  os.replace(path + ".part", path)


def write_captions(folder: str, captions: Sequence[str]) -> None:
  """All of them, as `CachedLatents` reads them."""
  encoded = [caption.encode() for caption in captions]
  text = np.frombuffer(b"".join(encoded), np.uint8)
  ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
  for name, array in (("captions", text), ("captions_ends", ends)):
    path = os.path.join(folder, f"{name}.npy")
    with open(path + ".part", "wb") as file:
      np.save(file, array)
    os.replace(path + ".part", path)
