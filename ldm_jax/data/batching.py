"""A source to batches: number n is a pure function of (source, seed, n)."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ldm_jax.data.buckets import Buckets, Shape
from ldm_jax.data.collate import (
  ExampleProcessor,
  Transform,
  Transformed,
  check_alike,
  stack,
)
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.augment import Augment


@runtime_checkable
class Source(Protocol):
  """Numbered examples: arrays, an image among them, perhaps a caption."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...


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
  """Global batches start, start + 1, ... of `batch` rows, without end.

  The source is shuffled anew every epoch; a batch may reach into the next one.
  Each process yields the rows that its devices hold; put together they are the
  same for any number of processes. Captions become "tokens" if there is a
  tokenizer; other text is dropped.

  Args:
    rows: which of every batch, rising; None makes all of them.
    buckets: shapes that whole batches are cut to; see `Buckets`.

  Raises:
    ValueError: there are no such rows, the source is empty, or (later) its
      items do not fit into one batch.
    ImageError: (later) a picture is bad; it names the path.
  """
  rows = _rows(batch, start, rows)
  if len(source) == 0:
    raise ValueError("the source has no examples to make batches")
  import grain

  if buckets and (augment is None or isinstance(source, CachedLatents)):
    raise ValueError("buckets need images, and an augment to cut them")
  examples = _numbered(source, batch, seed, buckets).random_map(
    ExampleProcessor(augment, tokenizer, tuple(transforms))
  )
  count = len(rows)
  if isinstance(source, CachedLatents):
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    blocks = Blocks(order, batch, tuple(rows.tolist()), source, tokenizer)
    whole = grain.MapDataset.source(blocks).seed(seed)
    whole = whole.random_map(Transformed(tuple(transforms)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(whole[start:].to_iter_dataset(options))
  shard = grain.MapDataset.source(Share(examples, batch, tuple(rows.tolist())))
  ahead = max(threads, 2 * count)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
  found = shard[start * count :].to_iter_dataset(options)
  return _stream(found, count, bool(buckets))


def _rows(
  batch: int, start: int, rows: Sequence[int] | np.ndarray | None
) -> np.ndarray:
  """Which of every batch; raises ValueError as `batches` does."""
  rows = np.arange(batch) if rows is None else np.asarray(rows)
  if start < 0 or batch < 1:
    raise ValueError(
      f"start must be 0 or more and batch 1 or more, got {start} and {batch}"
    )
  if not len(rows) or rows[0] < 0 or rows[-1] >= batch:
    raise ValueError(
      f"rows {rows.tolist()} must be of a batch, 0 to {batch - 1}"
    )
  return rows


def _numbered(
  source: Source, batch: int, seed: int, buckets: Sequence[Shape]
) -> Any:
  """The examples in the order of all batches, without end."""
  import grain

  if buckets:
    placed = Buckets(source, tuple(buckets), batch, seed)
    placed.check()
    return grain.MapDataset.source(placed).seed(seed)
  return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def example_indices(
  source: Source,
  *,
  batch: int,
  seed: int,
  number: int,
  buckets: Sequence[Shape] = (),
) -> list[int]:
  """The examples of `batches`' batch of that number, row by row."""
  import grain

  places = range(number * batch, (number + 1) * batch)
  if buckets:
    placed = Buckets(source, tuple(buckets), batch, seed)
    return [placed.index(place)[0] for place in places]
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
  return [int(order[place]) for place in places]


def ordered(
  source: Source,
  indices: Sequence[int],
  *,
  augment: Augment | None = None,
  tokenizer: Tokenizer | None = None,
  transforms: Sequence[Transform] = (),
) -> dict[str, np.ndarray]:
  """These examples as one batch: cropped at the centre, never mirrored.

  What views draw depends on an example's index alone.
  """
  beyond = [index for index in indices if not 0 <= index < len(source)]
  if beyond or not len(indices):
    got = f"index {beyond[0]}" if beyond else "no index"
    raise ValueError(
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
class Share:
  """The same rows of every global batch, one after another.

  Grain's own shards take every P-th example, so that the order of the rows
  would change with the number of processes.
  """

  examples: Source
  batch: int
  rows: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.examples) // self.batch * len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    number, place = divmod(index, len(self.rows))
    return self.examples[number * self.batch + self.rows[place]]


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Whole batches of cached latents: one gather each, no example by itself.

  Attributes:
    order: the numbers of examples, shuffled, again and again.
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
    found = self.source.rows(chosen)
    if self.tokenizer is not None:
      captions = self.source.captions(chosen)
      found["tokens"] = self.tokenizer.encode(captions)
    return found


def _stream(
  examples: Any, rows: int, may_differ: bool
) -> Iterator[dict[str, np.ndarray]]:
  """Blocks of so many rows; batches may differ in shape if they may."""
  iterator = iter(examples)
  try:
    example = None  # what later batches must look like
    while True:
      block = list(itertools.islice(iterator, rows))
      example = block[0] if may_differ or example is None else example
      check_alike([example, block[0]])
      yield stack(block)
  finally:
    iterator.close()
