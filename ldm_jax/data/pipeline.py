"""A source to batches: number n is a pure function of (source, seed, n)."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8

from ldm_jax.data.images import resize, resize_map
from ldm_jax.data.tokens import Words


@runtime_checkable
class Source(Protocol):
  """Numbered examples: arrays, an image among them, perhaps a caption."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Augment:
  """A square crop, resized with antialiasing, perhaps mirrored.

  Arrays as high and wide as the image (segmentation maps) follow it, by nearest
  neighbour; boxes and other coordinates do not. A crop that has `size` already
  is not resampled, a smaller one is enlarged.

  Attributes:
    size: pixels of the result, both ways.
    crop: "center" takes the whole shorter side; "random" takes shorter side x
      U(scale), anywhere.
    flip: mirror every other image. Set it to False where captions tell left
      from right, or pictures hold text.
  """

  size: int
  crop: Literal["random", "center"] = "random"
  scale: tuple[float, float] = (1.0, 1.0)
  flip: bool = True

  def __post_init__(self):
    low, high = self.scale
    if not 0.0 < low <= high <= 1.0:
      raise ValueError(
        f"scale {self.scale} must be two parts of the shorter side, "
        "0 < low <= high <= 1; try (0.8, 1.0)"
      )
    if self.size < 1:
      raise ValueError(
        f"size {self.size} must be a number of pixels, 1 or more"
      )

  def random(
    self, item: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, Any]:
    """As the fields say. Always four draws, so that crops keep their flips."""
    zoom, top, left, flip = rng.random(4)
    if self.crop == "center":
      return self._square(item, None, bool(self.flip and flip < 0.5))
    low, high = self.scale
    place = (low + (high - low) * zoom, top, left)
    return self._square(item, place, bool(self.flip and flip < 0.5))

  def center(self, item: dict[str, Any]) -> dict[str, Any]:
    """The whole shorter side, never mirrored: for validation."""
    return self._square(item, None, False)

  def _square(
    self,
    item: dict[str, Any],
    place: tuple[float, float, float] | None,
    flip: bool,
  ) -> dict[str, Any]:
    if "image" not in item:
      raise ValueError(
        f"nothing to augment: examples have {', '.join(sorted(item))}, but no "
        "image; set augment to None"
      )
    height, width = item["image"].shape[:2]
    box = _center_box(height, width)
    if place is not None:
      box = _random_box(height, width, place)
    cut = {}
    for key, value in item.items():
      if np.shape(value)[:2] == (height, width):
        value = _crop(value, box, self.size, is_image=key == "image")
        value = value[:, ::-1] if flip else value
      cut[key] = value
    return cut


def batches(
  source: Source,
  *,
  batch: int,
  seed: int,
  augment: Augment | None = None,
  tokenizer: Words | None = None,
  start: int = 0,
  share: tuple[int, int] = (0, 1),
  threads: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
  """Global batches start, start + 1, ... of `batch` rows, without end.

  The source is shuffled anew every epoch; a batch may reach into the next one.
  Each process yields its own block of rows; put together in the order of the
  processes they are the same for any number of them. Captions become "tokens"
  if there is a tokenizer; other text is dropped.

  Args:
    share: this process, counted from 0, and how many there are.

  Raises:
    ValueError: `batch` cannot be shared by the processes, the source is empty,
      or (later) its items do not fit into one batch.
    ImageError: (later) a picture is bad; it names the path.
  """
  process, processes = share
  if start < 0 or not 0 <= process < processes:
    raise ValueError(
      f"start {start} must be 0 or more, and process {process} one of the "
      f"{processes}, counted from 0"
    )
  if batch < 1 or batch % processes:
    raise ValueError(
      f"batch {batch} must be a multiple of the {processes} processes; "
      f"try {max(1, batch // processes) * processes}"
    )
  if len(source) == 0:
    raise ValueError(f"{type(source).__name__} has no examples to make batches")
  import grain

  examples = (
    grain.MapDataset.source(source)
    .seed(seed)
    .shuffle()
    .repeat()
    .random_map(_Prepare(augment, tokenizer))
  )
  rows = batch // processes
  shard = grain.MapDataset.source(BlockShard(examples, process, batch, rows))
  ahead = max(threads, 2 * rows)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
  return _stream(shard[start * rows :].to_iter_dataset(options), rows)


def ordered(
  source: Source,
  indices: Sequence[int],
  *,
  augment: Augment | None = None,
  tokenizer: Words | None = None,
) -> dict[str, np.ndarray]:
  """These examples as one batch: cropped at the centre, never mirrored."""
  beyond = [index for index in indices if not 0 <= index < len(source)]
  if beyond or not len(indices):
    got = f"index {beyond[0]}" if beyond else "no index"
    raise ValueError(
      f"got {got}; {type(source).__name__} has {len(source)} examples, "
      f"0 to {len(source) - 1}"
    )
  prepare = _Prepare(augment, tokenizer)
  return _stack([prepare(source[index], None) for index in indices])


def first(
  source: Source,
  count: int,
  *,
  augment: Augment | None = None,
  tokenizer: Words | None = None,
) -> dict[str, np.ndarray]:
  """The first `count` examples as one batch; see `ordered`."""
  return ordered(source, range(count), augment=augment, tokenizer=tokenizer)


@dataclasses.dataclass(frozen=True)
class BlockShard:
  """Rows [p r, (p + 1) r) of every global batch, for process p of r rows.

  Grain's own shards take every P-th example, so that the order of the rows
  would change with the number of processes.
  """

  examples: Source
  process: int
  batch: int
  rows: int

  def __len__(self) -> int:
    return len(self.examples) // self.batch * self.rows

  def __getitem__(self, index: int) -> dict[str, Any]:
    number, row = divmod(index, self.rows)
    return self.examples[number * self.batch + self.process * self.rows + row]


@dataclasses.dataclass(frozen=True)
class _Prepare:
  """One example to arrays; augmented at random if there is a generator."""

  augment: Augment | None
  tokenizer: Words | None

  def __call__(
    self, item: dict[str, Any], rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    item, augment = dict(item), self.augment
    caption = item.pop("caption", None)
    if augment is not None:
      item = augment.center(item) if rng is None else augment.random(item, rng)
    if self.tokenizer is not None and caption is not None:
      item["tokens"] = self.tokenizer.encode([caption])[0]
    arrays = {key: np.asarray(value) for key, value in item.items()}
    return {k: v for k, v in arrays.items() if v.dtype.kind not in "USO"}


def _stream(examples: Any, rows: int) -> Iterator[dict[str, np.ndarray]]:
  iterator = iter(examples)
  try:
    example = None  # what later batches must look like
    while True:
      block = list(itertools.islice(iterator, rows))
      example = example or block[0]
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


def _center_box(height: int, width: int) -> tuple[int, int, int]:
  side = min(height, width)
  return (height - side) // 2, (width - side) // 2, side


def _random_box(
  height: int, width: int, place: tuple[float, float, float]
) -> tuple[int, int, int]:
  """(top, left, side) from (part of the shorter side, top, left) in [0, 1)."""
  part, top, left = place
  side = max(1, round(part * min(height, width)))
  return int(top * (height - side + 1)), int(left * (width - side + 1)), side


def _crop(
  values: Shaped[np.ndarray, "..."],
  box: tuple[int, int, int],
  size: int,
  *,
  is_image: bool,
) -> UInt8[np.ndarray, "size size 3"] | Shaped[np.ndarray, "size size ..."]:
  top, left, side = box
  cut = values[top : top + side, left : left + side]
  if side == size:
    return cut
  return resize(cut, size) if is_image else resize_map(cut, size)
