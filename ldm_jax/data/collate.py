"""Examples to arrays, and their arrays to one batch."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ldm_jax.data.buckets import SHAPE
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.augment import Augment


@runtime_checkable
class Transform(Protocol):
  """What a conditioner reads and no source has: made of an example, by chance.

  Attributes:
    adds: the name of the new array.
  """

  output_key: str

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator, /
  ) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Transformed:
  """A batch with what views make of each of its examples."""

  transforms: tuple[Transform, ...]

  def __call__(
    self, batch: dict[str, np.ndarray], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    for view in self.transforms:
      items = (
        {name: array[i] for name, array in batch.items()}
        for i in range(len(batch["moments"]))
      )
      batch = batch | {view.output_key: np.stack([view(i, rng) for i in items])}
    return batch


@dataclasses.dataclass(frozen=True)
class ExampleProcessor:
  """One example to arrays."""

  augment: Augment | None
  tokenizer: Tokenizer | None
  transforms: tuple[Transform, ...] = ()

  def __call__(
    self, item: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Cropped and mirrored at random."""
    item = dict(item)
    shape = item.pop(SHAPE, None)
    if self.augment is not None:
      item = self.augment.random(item, rng, shape)
    return self._arrays(item, rng)

  def centred(self, item: dict[str, Any], index: int) -> dict[str, np.ndarray]:
    """Cropped at the centre."""
    item = self.augment.center(item) if self.augment else dict(item)
    return self._arrays(item, np.random.default_rng(int(index)))

  def _arrays(
    self, item: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    caption = item.pop("caption", None)
    for view in self.transforms:
      item[view.output_key] = view(item, rng)
    if self.tokenizer is not None and caption is not None:
      item["tokens"] = self.tokenizer.encode([caption])[0]
    arrays = {key: np.asarray(value) for key, value in item.items()}
    return {k: v for k, v in arrays.items() if v.dtype.kind not in "USO"}


def stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """One batch of examples; raises as `check_alike` does."""
  check_alike(rows)
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def check_alike(rows: list[dict[str, np.ndarray]]) -> None:
  """Raises ValueError unless all have the same arrays, of the same shapes."""
  for row in rows:
    odd = sorted(row.keys() ^ rows[0].keys())
    if odd:
      raise ValueError(
        f"some examples have {odd[0]!r} and others do not; give it to all of "
        "them, or leave it out"
      )
    for key, value in row.items():
      if value.shape != rows[0][key].shape:
        hint = "; set augment, with a size" if key == "image" else ""
        raise ValueError(
          f"{key!r} of shape {list(rows[0][key].shape)} and of shape "
          f"{list(value.shape)} do not fit into one batch{hint}"
        )
