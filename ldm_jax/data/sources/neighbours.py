"""Examples with what a search found to be like them."""

import dataclasses
import functools
import os
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

ROWS = "database.npy"


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """A source whose examples have "neighbours" [k, d] too.

  The folder is written by `python -m ldm_jax.cli.retrieve`: database.npy
  holds the embeddings of the training source, train.npy and validation.npy
  which of its rows are nearest to each example, itself left out.

  Attributes:
    part: whose neighbours these are.
    k: how many of them.

  Raises (all at first use):
    ValueError: the folder lacks a file, or has fewer neighbours, or those of
      fewer examples.
  """

  source: Any
  folder: str
  part: Literal["train", "validation"] = "train"
  k: int = 4

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    item = dict(self.source[index])
    item["neighbours"] = np.asarray(self._rows[self.places(index)], np.float32)
    return item

  def places(self, index: int) -> np.ndarray:
    """Which rows of the database are nearest to an example, best first."""
    return self._nearest[index, : self.k]

  @functools.cached_property
  def _rows(self) -> Float[np.ndarray, "n d"]:
    return self._read(ROWS)

  @functools.cached_property
  def _nearest(self) -> np.ndarray:
    found = self._read(f"{self.part}.npy")
    if len(found) < len(self.source) or found.shape[1] < self.k:
      raise ValueError(
        f"{self.folder} has {found.shape[1]} neighbours of {len(found)} "
        f"{self.part} examples; needed are {self.k} of {len(self.source)}; "
        "search again (python -m ldm_jax.cli.retrieve)"
      )
    return found

  def _read(self, name: str) -> np.ndarray:
    path = os.path.join(self.folder, name)
    try:
      return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
      raise ValueError(
        f"no neighbours in {path} ({error}); search for them first: python -m "
        "ldm_jax.cli.retrieve"
      ) from error
