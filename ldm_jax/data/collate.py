"""Examples to arrays (crop, transforms, tokens), and arrays to one batch."""

import dataclasses
from typing import Any

import numpy as np

from ldm_jax.data.buckets import SHAPE
from ldm_jax.data.protocols import Transform
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import DataError

__all__ = [
  "BatchTransforms",
  "ExampleProcessor",
  "Transform",
  "check_alike",
  "stack",
]


@dataclasses.dataclass(frozen=True)
class BatchTransforms:
  """Applies transforms to each example of a batch of cached latents."""

  transforms: tuple[Transform, ...]

  def __call__(
    self, batch: dict[str, np.ndarray], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    for transform in self.transforms:
      items = (
        {name: array[i] for name, array in batch.items()}
        for i in range(len(batch["moments"]))
      )
      arrays = [transform(item, rng) for item in items]
      batch = batch | {transform.output_key: np.stack(arrays)}
    return batch


@dataclasses.dataclass(frozen=True)
class ExampleProcessor:
  """One example to arrays: crop, transforms, tokens; other text is dropped.

  Attributes:
    augment: crops and mirrors, or None.
    tokenizer: for "caption", or None to drop it.
    transforms: applied in this order, after the crop.
  """

  augment: Augment | None
  tokenizer: Tokenizer | None
  transforms: tuple[Transform, ...] = ()

  def __call__(
    self, item: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """For training: cropped and mirrored at random."""
    item = dict(item)
    shape = item.pop(SHAPE, None)
    if self.augment is not None:
      item = self.augment.random(item, rng, shape)
    return self._arrays(item, rng)

  def centred(self, item: dict[str, Any], index: int) -> dict[str, np.ndarray]:
    """For validation: cropped at the centre, random numbers by `index`."""
    item = self.augment.center(item) if self.augment else dict(item)
    return self._arrays(item, np.random.default_rng(int(index)))

  def _arrays(
    self, item: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    caption = item.pop("caption", None)
    for transform in self.transforms:
      item[transform.output_key] = transform(item, rng)
    if self.tokenizer is not None and caption is not None:
      found = self.tokenizer.arrays([caption])
      item |= {name: ids[0] for name, ids in found.items()}
    arrays = {key: np.asarray(value) for key, value in item.items()}
    return {k: v for k, v in arrays.items() if v.dtype.kind not in "USO"}


def stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Stacks examples to one batch; raises as `check_alike` does."""
  check_alike(rows)
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def check_alike(rows: list[dict[str, np.ndarray]]) -> None:
  """Raises DataError unless all have the same arrays, of the same shapes."""
  for row in rows:
    odd = sorted(row.keys() ^ rows[0].keys())
    if odd:
      raise DataError(
        f"some examples have {odd[0]!r} and others do not; give it to all of "
        "them, or leave it out"
      )
    for key, value in row.items():
      if value.shape != rows[0][key].shape:
        hint = "; set augment, with a size" if key == "image" else ""
        raise DataError(
          f"{key!r} of shape {list(rows[0][key].shape)} and of shape "
          f"{list(value.shape)} do not fit into one batch{hint}"
        )
