"""Batches of a source: batch n is a pure function of (source, seed, n)."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ldm_jax.data.buckets import Buckets, Shape
from ldm_jax.data.collate import (
  BatchTransforms,
  ExampleProcessor,
  check_alike,
  stack,
)
from ldm_jax.data.protocols import Source, Transform
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError, DataError

__all__ = [
  "Source",
  "Transform",
  "batches",
  "example_indices",
  "first",
  "ordered",
]


def batches(
  source: Source,
  *,
  batch: int,
  seed: int,
  augment: Augment | None = None,
  tokenizer: Tokenizer | None = None,
  transforms: Sequence[Transform] = (),
  start: int = 0,
  rows: Sequence[int] | np.ndarray | None = None,
  threads: int = 8,
  buckets: Sequence[Shape] = (),
) -> Iterator[dict[str, np.ndarray]]:
  """Global batches start, start + 1, ... of `batch` rows, endlessly.

  The source is reshuffled every epoch; a batch may span two epochs. Each
  process yields the rows that its devices hold; together they are the same for
  any number of processes. Captions become "tokens", and the arrays of
  its `others`, if there is a tokenizer; other text is dropped.

  Args:
    batch: rows of a global batch, over all processes.
    seed: of the order, the crops and the transforms.
    augment: random crop and mirroring; None leaves images as they are.
    rows: rows of every batch to yield, in increasing order; None yields all.
    threads: that read and decode; 0 reads in the calling thread.
    buckets: shapes that whole batches are cropped to; see `Buckets`.

  Raises:
    ConfigError: there are no such rows, or buckets without images.
    DataError: the source is empty, or (while iterating) its examples do not
      fit into one batch.
    ImageError: (while iterating) an image is bad; it names the path.
  """
  rows = _rows(batch, start, rows)
  if len(source) == 0:
    raise DataError("the source has no examples to make batches")
  import grain

  if buckets and (augment is None or isinstance(source, CachedLatents)):
    raise ConfigError("buckets need images, and an augment to crop them")
  examples = _numbered(source, batch, seed, buckets).random_map(
    ExampleProcessor(augment, tokenizer, tuple(transforms))
  )
  count = len(rows)
  if isinstance(source, CachedLatents):
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    latents = LatentBatches(
      order, batch, tuple(rows.tolist()), source, tokenizer
    )
    whole = grain.MapDataset.source(latents).seed(seed)
    whole = whole.random_map(BatchTransforms(tuple(transforms)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(whole[start:].to_iter_dataset(options))
  local = BatchRows(examples, batch, tuple(rows.tolist()))
  shard = grain.MapDataset.source(local)
  buffer = max(threads, 2 * count)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  stream = shard[start * count :].to_iter_dataset(options)
  return _stacked(stream, count, bool(buckets))


def _rows(
  batch: int, start: int, rows: Sequence[int] | np.ndarray | None
) -> np.ndarray:
  """The rows of every batch to yield; raises ConfigError as `batches` does."""
  rows = np.arange(batch) if rows is None else np.asarray(rows)
  if start < 0 or batch < 1:
    raise ConfigError(
      f"start must be 0 or more and batch 1 or more, got {start} and {batch}"
    )
  if not len(rows) or rows[0] < 0 or rows[-1] >= batch:
    raise ConfigError(
      f"rows {rows.tolist()} must be rows of a batch, 0 to {batch - 1}"
    )
  return rows


def _numbered(
  source: Source, batch: int, seed: int, buckets: Sequence[Shape]
) -> Any:
  """The examples in the order of all batches, without end."""
  import grain

  if buckets:
    bucketed = Buckets(source, tuple(buckets), batch, seed)
    bucketed.check()
    return grain.MapDataset.source(bucketed).seed(seed)
  return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def example_indices(
  source: Source,
  *,
  batch: int,
  seed: int,
  number: int,
  buckets: Sequence[Shape] = (),
) -> list[int]:
  """Indices into the source of the rows of batch `number` of `batches`."""
  import grain

  positions = range(number * batch, (number + 1) * batch)
  if buckets:
    bucketed = Buckets(source, tuple(buckets), batch, seed)
    return [bucketed.index(position)[0] for position in positions]
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
  return [int(order[position]) for position in positions]


def ordered(
  source: Source,
  indices: Sequence[int],
  *,
  augment: Augment | None = None,
  tokenizer: Tokenizer | None = None,
  transforms: Sequence[Transform] = (),
) -> dict[str, np.ndarray]:
  """These examples as one batch: cropped at the centre, never mirrored.

  The random numbers of transforms depend on an example's index alone.

  Raises:
    ConfigError: there is no such index, or `indices` is empty.
    DataError: the examples do not fit into one batch.
  """
  beyond = [index for index in indices if not 0 <= index < len(source)]
  if beyond or not len(indices):
    got = f"index {beyond[0]}" if beyond else "no index"
    raise ConfigError(
      f"got {got}; {type(source).__name__} has {len(source)} examples, "
      f"0 to {len(source) - 1}"
    )
  prepare = ExampleProcessor(augment, tokenizer, tuple(transforms))
  return stack([prepare.centred(source[i], i) for i in indices])


def first(
  source: Source,
  count: int,
  *,
  augment: Augment | None = None,
  tokenizer: Tokenizer | None = None,
  transforms: Sequence[Transform] = (),
) -> dict[str, np.ndarray]:
  """The first `count` examples as one batch; see `ordered`."""
  return ordered(
    source,
    range(count),
    augment=augment,
    tokenizer=tokenizer,
    transforms=transforms,
  )


@dataclasses.dataclass(frozen=True)
class BatchRows:
  """The same rows of every global batch, one after another.

  (grain.ShardOptions takes every P-th example, so that the order of the rows
  would depend on the number of processes.)

  Attributes:
    examples: in the order of all batches.
    batch: rows of a global batch.
    rows: those of this process.
  """

  examples: Source
  batch: int
  rows: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.examples) // self.batch * len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    number, position = divmod(index, len(self.rows))
    return self.examples[number * self.batch + self.rows[position]]


@dataclasses.dataclass(frozen=True)
class LatentBatches:
  """Whole batches of cached latents, one gather each.

  Attributes:
    order: indices of examples, shuffled every epoch, without end.
    batch: rows of a global batch.
    rows: those of this process.
    source: the cached latents.
    tokenizer: for their captions, or None.
  """

  order: Source
  batch: int
  rows: tuple[int, ...]
  source: CachedLatents
  tokenizer: Tokenizer | None

  def __len__(self) -> int:
    return len(self.order) // self.batch

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    begin = index * self.batch
    chosen = np.array([self.order[begin + row] for row in self.rows])
    arrays = self.source.rows(chosen)
    if self.tokenizer is not None:
      captions = self.source.captions(chosen)
      arrays |= self.tokenizer.arrays(captions)
    return arrays


def _stacked(
  examples: Any, rows: int, may_differ: bool
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of `rows` examples; of several shapes only if they may differ."""
  iterator = iter(examples)
  try:
    example = None  # whose arrays' names and shapes later batches must have
    while True:
      block = list(itertools.islice(iterator, rows))
      example = block[0] if may_differ or example is None else example
      check_alike([example, block[0]])
      yield stack(block)
  finally:
    iterator.close()
