"""Glyphs: a procedural data set of coloured shapes with captions and maps.

Sample number i of a split is a pure function of (level, seed, i).
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from ldm_jax.data.glyphs.captions import PARAPHRASES, caption, caption_words
from ldm_jax.data.glyphs.scenes import (
  BACKGROUNDS,
  COLOURS,
  LEVELS,
  POSITIONS,
  SHAPES,
  SIZES,
  TEXTURES,
  Scene,
  Thing,
  centre,
  covers,
  paint,
  place,
)

__all__ = [
  "ATTRIBUTES",
  "BACKGROUNDS",
  "COLOURS",
  "POSITIONS",
  "SHAPES",
  "SIZES",
  "TEXTURES",
  "Glyphs",
  "caption_words",
  "is_held_out",
]

ATTRIBUTES = ("shape", "colour", "texture", "size", "position", "background")
CORNERS = (0, 2, 6, 8)

# The first index of each split: no index is in two of them, so no random
# numbers are.
_SPLITS = {"train": 0, "validation": 2**31, "held_out": 2**32}

_PALETTES = {"vivid": (0,), "soft": (1,), "both": (0, 1)}

_Random = Callable[[int], int]  # n to a number in [0, n)


def is_held_out(label: int) -> bool:
  """Whether a (shape, colour) pair is excluded from training: every tenth is.

  A shape has eight pairs, so it loses at most one, each shape another colour.
  """
  return label % 10 == 7


def _random_numbers(seed: int, index: int) -> _Random:
  """A function of n that is uniform in [0, n), by Philox with this key.

  numpy keeps the raw stream of a bit generator fixed, but not that of
  `Generator.integers` (NEP 19). The modulo's bias is below 2^-56.
  """
  key = np.array([seed, index], np.uint64)  # a list may pass through float64
  numbers = iter(np.random.Philox(key=key).random_raw(32).tolist())
  return lambda n: next(numbers) % n


def _sample_thing(
  level: int, random: _Random, labels: list[int], cell: int
) -> Thing:
  rules = LEVELS[level]
  shape, colour = divmod(labels[random(len(labels))], len(COLOURS))
  texture, size = random(rules.textures), random(len(SIZES))
  span = 2 * rules.jitter + 1
  jitter = random(span) - rules.jitter, random(span) - rules.jitter
  return Thing(shape, colour, texture, size, cell, jitter)


def _take(random: _Random, choices: list[int]) -> int:
  """Removes a random element."""
  return choices.pop(random(len(choices)))


def _in_reading_order(level: int, things: list[Thing]) -> tuple[Thing, ...]:
  """An order in which each thing is left of, or above, the next.

  Of all orders, that of the widest smallest gap.
  """

  if len(things) == 1:
    return tuple(things)

  def narrowest(order: tuple[Thing, ...]) -> int:
    centres = np.array([centre(level, thing) for thing in order])
    return int(np.diff(centres, axis=0).max(axis=1).min())

  return max(itertools.permutations(things), key=narrowest)


def _sample_scene(level: int, random: _Random, labels: list[int]) -> Scene:
  """A random scene whose objects have (shape, colour) pairs among `labels`.

  Objects, number and grating are at different positions of the 3 x 3, so the
  number is never hidden and a neighbour covers at most 7 of an object's 22 px.
  """
  rules = LEVELS[level]
  background = random(len(BACKGROUNDS) * rules.patterns)
  cells = list(range(len(POSITIONS)))
  if rules.objects == 1:
    thing = _sample_thing(level, random, labels, _take(random, cells))
    return Scene(level, background, (thing,))
  number = 10 + random(90)
  corner = CORNERS[random(len(CORNERS))]
  cells.remove(corner)
  count = 1 + random(rules.objects)
  things = [
    _sample_thing(level, random, labels, _take(random, cells))
    for _ in range(count)
  ]
  order = list(range(count))
  depth = tuple(_take(random, order) for _ in range(count))
  grating, upright = _take(random, cells), random(2) == 1
  return Scene(
    level,
    background,
    _in_reading_order(level, things),
    depth=depth,
    number=number,
    corner=corner,
    grating=grating,
    upright=upright,
  )


def _label(thing: Thing) -> int:
  return thing.shape * len(COLOURS) + thing.colour


def _boxes(scene: Scene) -> Float[np.ndarray, "k 5"]:
  """x0, y0, x1, y1 in [0, 1] and the label; occluded parts are included.

  Padded with rows of -1 to the number of objects that the level allows.
  """
  rules = LEVELS[scene.level]
  boxes = np.full((rules.objects, 5), -1, np.float32)
  for k, thing in enumerate(scene.things):
    (rows, columns), mask = place(scene.level, thing)
    ys, xs = covers(mask).nonzero()
    x0, y0 = columns.start + xs.min(), rows.start + ys.min()
    x1, y1 = columns.start + xs.max() + 1, rows.start + ys.max() + 1
    boxes[k, :4] = np.array([x0, y0, x1, y1]) / rules.pixels
    boxes[k, 4] = _label(thing)
  return boxes


def _attributes(scene: Scene) -> Int[np.ndarray, "k 6"]:
  attributes = np.full((LEVELS[scene.level].objects, 6), -1, np.int32)
  for k, thing in enumerate(scene.things):
    attributes[k] = *thing[:5], scene.background
  return attributes


@dataclasses.dataclass(frozen=True)
class Glyphs:
  """The data set, a Source of image, caption, label, segmap, boxes, attributes.

  Level 0 is one object on 32 x 32 px; level 1 is one to three on 64 x 64 px,
  with a two-digit `number` in a corner and a grating of 1 px lines.

    image       uint8 [s, s, 3]
    caption     lower-case words
    label       shape * 8 + colour, at level 1 of the first object named
    segmap      uint8 [s, s]: 0 is background, 1 + shape an object
    boxes       float32 [objects, 5]: x0, y0, x1, y1 in [0, 1], then the label
    attributes  int32 [6], in the order of `ATTRIBUTES`; at level 1 [3, 6], and
                the background counts colour + 4 * pattern
    number      int32, in [10, 100), at level 1 only

  Boxes and attributes are padded with rows of -1. Train and validation use
  different random numbers; held_out has only (shape, colour) pairs that the
  other two never contain. Palette "soft" renders the same scenes in other
  colours of the same names, "both" half of them at random. `detail` 2 or 4
  renders level 0 at 64 x 64 or 128 x 128 pixels, whose means over 2 x 2 or
  4 x 4 are the image of detail 1.

  Attributes:
    level: 0 or 1.
    split: train, validation or held_out.
    size: number of samples.
    seed: of the samples, in [0, 2**64).
    palette: vivid, soft or both.
    detail: pixels along a side, as a multiple of the level's.
  """

  level: int = 0
  split: Literal["train", "validation", "held_out"] = "train"
  size: int = 50_000
  seed: int = 0
  palette: Literal["vivid", "soft", "both"] = "vivid"
  detail: int = 1

  def __post_init__(self):
    if self.detail not in ((1, 2, 4) if self.level == 0 else (1,)):
      raise ValueError(
        f"detail {self.detail!r} must be 1, 2 or 4 at level 0, and 1 at level 1"
      )
    if self.level not in range(len(LEVELS)):
      raise ValueError(
        f"level {self.level!r} must be 0 (32 px, one object) or 1 (64 px, one"
        " to three objects)"
      )
    if self.split not in _SPLITS:
      raise ValueError(f"split {self.split!r} must be one of {list(_SPLITS)}")
    if not 1 <= self.size <= 2**31:
      raise ValueError(
        f"size {self.size} must be at least 1 and at most 2**31, where the"
        " indices of the next split begin"
      )
    if not 0 <= self.seed < 2**64:
      raise ValueError(f"seed {self.seed} must lie in [0, 2**64)")

  def __len__(self) -> int:
    return self.size

  @property
  def labels(self) -> list[int]:
    """The (shape, colour) pairs of this split."""
    pairs = range(LEVELS[self.level].shapes * len(COLOURS))
    wanted = self.split == "held_out"
    return [label for label in pairs if is_held_out(label) == wanted]

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels of all splits, such as "red circle"."""
    shapes = list(SHAPES)[: LEVELS[self.level].shapes]
    return tuple(f"{colour} {shape}" for shape in shapes for colour in COLOURS)

  def scene(self, index: SupportsIndex) -> Scene:
    """The scene of sample `index`."""
    return self._sample(index)[0]

  def _sample(self, index: SupportsIndex) -> tuple[Scene, int]:
    """The scene, and the number of the paraphrase of its caption."""
    index = operator.index(index)
    if not 0 <= index < self.size:
      raise IndexError(f"index {index} must lie in [0, {self.size})")
    random = _random_numbers(self.seed, _SPLITS[self.split] + index)
    paraphrase = random(PARAPHRASES)
    scene = _sample_scene(self.level, random, self.labels)
    palettes = _PALETTES[self.palette]
    palette = palettes[random(len(palettes))]
    return scene._replace(palette=palette, detail=self.detail), paraphrase

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    scene, paraphrase = self._sample(index)
    image, segmap = paint(scene)
    attributes = _attributes(scene)
    sample = {
      "image": image,
      "caption": caption(scene, paraphrase),
      "label": np.int32(_label(scene.things[0])),
      "segmap": segmap,
      "boxes": _boxes(scene),
      "attributes": attributes[0] if self.level == 0 else attributes,
    }
    if scene.number is not None:
      sample["number"] = np.int32(scene.number)
    return sample
