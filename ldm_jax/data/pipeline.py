"""A source to batches: number n is a pure function of (source, seed, n)."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ldm_jax.data.augment import Augment
from ldm_jax.data.buckets import SHAPE, Buckets, Shape
from ldm_jax.data.latents import Latents
from ldm_jax.data.tokens import Words


@runtime_checkable
class Source(Protocol):
  """Numbered examples: arrays, an image among them, perhaps a caption."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@runtime_checkable
class View(Protocol):
  """What a conditioner reads and no source has: made of an example, by chance.

  Attributes:
    adds: the name of the new array.
  """

  adds: str

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator, /
  ) -> np.ndarray: ...


def batches(
  source: Source,
  *,
  batch: int,
  seed: int,
  augment: Augment | None = None,
  tokenizer: Words | None = None,
  views: Sequence[View] = (),
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
  rows = np.arange(batch) if rows is None else np.asarray(rows)
  if start < 0 or batch < 1:
    raise ValueError(
      f"start must be 0 or more and batch 1 or more, got {start} and {batch}"
    )
  if not len(rows) or rows[0] < 0 or rows[-1] >= batch:
    raise ValueError(
      f"rows {rows.tolist()} must be of a batch, 0 to {batch - 1}"
    )
  if len(source) == 0:
    raise ValueError(f"{type(source).__name__} has no examples to make batches")
  import grain

  if buckets and (augment is None or isinstance(source, Latents)):
    raise ValueError("buckets need images, and an augment to cut them")
  examples = _numbered(source, batch, seed, buckets).random_map(
    _Prepare(augment, tokenizer, tuple(views))
  )
  count = len(rows)
  if isinstance(source, Latents):
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    blocks = Blocks(order, batch, tuple(rows.tolist()), source, tokenizer)
    whole = grain.MapDataset.source(blocks).seed(seed)
    whole = whole.random_map(_Seen(tuple(views)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(whole[start:].to_iter_dataset(options))
  shard = grain.MapDataset.source(Share(examples, batch, tuple(rows.tolist())))
  ahead = max(threads, 2 * count)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
  found = shard[start * count :].to_iter_dataset(options)
  return _stream(found, count, bool(buckets))


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


def ordered(
  source: Source,
  indices: Sequence[int],
  *,
  augment: Augment | None = None,
  tokenizer: Words | None = None,
  views: Sequence[View] = (),
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
  prepare = _Prepare(augment, tokenizer, tuple(views))
  return _stack([prepare.centred(source[i], i) for i in indices])


def first(
  source: Source,
  count: int,
  *,
  augment: Augment | None = None,
  tokenizer: Words | None = None,
  views: Sequence[View] = (),
) -> dict[str, np.ndarray]:
  """The first `count` examples as one batch; see `ordered`."""
  return ordered(
    source, range(count), augment=augment, tokenizer=tokenizer, views=views
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
  source: Latents
  tokenizer: Words | None

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


@dataclasses.dataclass(frozen=True)
class _Seen:
  """A batch with what views make of each of its examples."""

  views: tuple[View, ...]

  def __call__(
    self, batch: dict[str, np.ndarray], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    for view in self.views:
      items = (
        {name: array[i] for name, array in batch.items()}
        for i in range(len(batch["moments"]))
      )
      batch = batch | {view.adds: np.stack([view(i, rng) for i in items])}
    return batch


@dataclasses.dataclass(frozen=True)
class _Prepare:
  """One example to arrays."""

  augment: Augment | None
  tokenizer: Words | None
  views: tuple[View, ...] = ()

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
    for view in self.views:
      item[view.adds] = view(item, rng)
    if self.tokenizer is not None and caption is not None:
      item["tokens"] = self.tokenizer.encode([caption])[0]
    arrays = {key: np.asarray(value) for key, value in item.items()}
    return {k: v for k, v in arrays.items() if v.dtype.kind not in "USO"}


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
      _check_alike([example, block[0]])
      yield _stack(block)
  finally:
    iterator.close()


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  _check_alike(rows)
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _check_alike(rows: list[dict[str, np.ndarray]]) -> None:
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
