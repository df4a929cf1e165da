"""Retrieval augmentation: a source with the nearest neighbours' embeddings."""

import dataclasses
import functools
import os
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import Count
from ldm_jax.files.numpy_files import read_npy

ROWS = "database.npy"


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """Adds "neighbours" [k, d] to the examples of a source (Blattmann 2022).

  The folder is written by `ldm-jax retrieve`: database.npy holds the CLIP
  embeddings of the training source; train.npy and validation.npy hold, for each
  example, the rows of its nearest neighbours, itself left out.

  Attributes:
    source: a data.protocols.Source.
    folder: see above.
    part: which split `source` is.
    k: neighbours per example.

  Raises (all at first use):
    ConfigError: the folder lacks a file, or has fewer neighbours, or those of
      fewer examples.
  """

  source: Any
  folder: str
  part: Literal["train", "validation"] = "train"
  k: Count = 4

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    item = dict(self.source[index])
    item["neighbours"] = np.asarray(self._rows[self.places(index)], np.float32)
    return item

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the source's labels, or () if it has none."""
    return tuple(getattr(self.source, "classes", ()))

  def places(self, index: int) -> np.ndarray:
    """Rows of the database that are nearest to an example, nearest first."""
    return self._nearest[index, : self.k]

  @functools.cached_property
  def _rows(self) -> Float[np.ndarray, "n d"]:
    return self._read(ROWS)

  @functools.cached_property
  def _nearest(self) -> np.ndarray:
    found = self._read(f"{self.part}.npy")
    if len(found) < len(self.source) or found.shape[1] < self.k:
      raise ConfigError(
        f"{self.folder} has {found.shape[1]} neighbours of {len(found)} "
        f"{self.part} examples; expected {self.k} of {len(self.source)}; "
        "search again (ldm-jax retrieve)"
      )
    return found

  def _read(self, name: str) -> np.ndarray:
    path = os.path.join(self.folder, name)
    try:
      array = read_npy(path, ConfigError, is_mapped=True)
    except ConfigError as error:
      raise ConfigError(
        f"{error}; search for neighbours first: ldm-jax retrieve"
      ) from error
    if array.ndim != 2:
      raise ConfigError(
        f"{path} is of shape {array.shape}; expected two axes; search again "
        "(ldm-jax retrieve)"
      )
    return array
