"""Scenes of coloured shapes, rendered in integer arithmetic.

Coverage is counted in 256ths and colours are blended as integers, so that a
scene has the same pixels on every machine.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "checkered", "fading")
POSITIONS = (
  "top left", "top", "top right",
  "left", "centre", "right",
  "bottom left", "bottom", "bottom right",
)  # fmt: skip
PATTERNS = ("plain", "dotted", "shaded")

# Any two of these, and any colour, half colour and background, are at least 70
# of 255 apart (Euclidean; test_glyphs.py): the margin of read_glyphs.
COLOURS = {
  "red": (220, 20, 30),
  "orange": (255, 140, 0),
  "yellow": (255, 235, 40),
  "green": (20, 160, 40),
  "cyan": (0, 210, 230),
  "blue": (20, 60, 240),
  "purple": (130, 20, 160),
  "pink": (255, 110, 190),
}
# Other colours of the same names, 70 or more from each other and from these.
SOFT = {
  "red": (255, 100, 108),
  "orange": (165, 99, 0),
  "yellow": (232, 247, 112),
  "green": (149, 244, 24),
  "cyan": (66, 188, 125),
  "blue": (77, 126, 253),
  "purple": (216, 115, 255),
  "pink": (180, 0, 176),
}
BACKGROUNDS = {
  "black": (0, 0, 0),
  "white": (255, 255, 255),
  "grey": (128, 128, 128),
  "tan": (210, 180, 140),
}
PALETTES = tuple(
  np.array(list(paint.values()), np.uint16) for paint in (COLOURS, SOFT)
)
GROUND = np.array(list(BACKGROUNDS.values()), np.uint16)

_Plane = Float[np.ndarray, "s s"]
_Shape = Callable[[_Plane, _Plane], Bool[np.ndarray, "s s"]]

# Outward normals of a regular pentagon: cosines of multiples of 18 degrees,
# rounded, so that they do not depend on a machine's libm.
_PENTAGON = (
  (0.0, 1.0),
  (0.951, 0.309), (-0.951, 0.309),
  (0.588, -0.809), (-0.588, -0.809),
)  # fmt: skip


def _star(u: _Plane, v: _Plane) -> Bool[np.ndarray, "s s"]:
  """Inside four of a pentagram's five lines, each cos 72 degrees away."""
  return sum(u * a + v * b <= 0.309 for a, b in _PENTAGON) >= 4


def _heart(u: _Plane, v: _Plane) -> Bool[np.ndarray, "s s"]:
  lobes = (abs(u) - 0.48) ** 2 + (v + 0.38) ** 2 <= 0.25
  return lobes | ((v >= -0.38) & (abs(u) <= 0.68 * (0.98 - v)))


# Inside or outside, in units of the radius: u to the right, v downwards.
SHAPES: dict[str, _Shape] = {
  "circle": lambda u, v: u * u + v * v <= 1,
  "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.875,
  "triangle": lambda u, v: (abs(u) <= (v + 1) / 2) & (v <= 0.875),
  "cross": lambda u, v: np.minimum(abs(u), abs(v)) <= 0.3,
  "ring": lambda u, v: abs(u * u + v * v - 0.65) <= 0.35,
  "diamond": lambda u, v: abs(u) + abs(v) <= 1,
  "star": _star,
  "hexagon": lambda u, v: (abs(v) <= 0.866) & (abs(u) + 0.577 * abs(v) <= 1),
  "heart": _heart,
  "arrow": lambda u, v: np.where(v < 0, abs(u) <= v + 1, abs(u) <= 0.3),
  "crescent": lambda u, v: (
    (u * u + v * v <= 1) & ((u - 0.5) ** 2 + v * v >= 0.6)
  ),
  "hourglass": lambda u, v: (abs(u) <= abs(v)) & (abs(v) <= 0.9),
}

# 3 x 5 px numerals, one row of pixels per octal digit.
_NUMERALS = (
  "75557", "26227", "71747", "71717", "55711",
  "74717", "74757", "71111", "75757", "75717",
)  # fmt: skip


class Level(NamedTuple):
  """What a level may contain; a count n allows the first n of a table."""

  pixels: int
  objects: int
  shapes: int
  textures: int
  patterns: int
  anchors: tuple[int, int, int]
  jitter: int
  radii: tuple[int, int]


# anchor - jitter - radius >= 0: no object leaves the image.
LEVELS = (
  Level(32, 1, 6, 3, 1, (8, 16, 24), 1, (4, 7)),
  Level(64, 3, 12, 4, 3, (13, 32, 51), 2, (7, 11)),
)


class Thing(NamedTuple):
  """One object: indices into the tables, and its jitter in pixels."""

  shape: int
  colour: int
  texture: int
  size: int
  position: int
  jitter: tuple[int, int] = (0, 0)


class Scene(NamedTuple):
  """Things in the order of the caption, on a background.

  `background` is colour + 4 * pattern. `depth` lists the things from the back
  to the front. The number is at position `corner`; the grating, vertical if
  `upright`, at position `grating`. Level 0 has neither. `palette` is an index
  of PALETTES. `detail` multiplies the pixels along each side, at most by 4, the
  samples per pixel along each side.
  """

  level: int
  background: int
  things: tuple[Thing, ...]
  depth: tuple[int, ...] = (0,)
  number: int | None = None
  corner: int = 0
  grating: int = 0
  upright: bool = False
  palette: int = 0
  detail: int = 1


class Stamp(NamedTuple):
  """Coverage in 256ths by the full colour and by half of it."""

  lit: UInt16[np.ndarray, "*s"]
  dark: UInt16[np.ndarray, "*s"]


@functools.cache
def stamp(shape: int, texture: int, radius: int, detail: int = 1) -> Stamp:
  """The coverage of one object, antialiased by 4 x 4 samples per pixel.

  With more detail the same samples are divided among more pixels.
  """
  side, each = 2 * radius * detail, 4 // detail
  axis = (np.arange(8 * radius) + 0.5) / (4 * radius) - 1
  inside = list(SHAPES.values())[shape](*np.meshgrid(axis, axis))
  cover = inside.reshape(side, each, side, each).sum((1, 3)) * detail**2
  cover = cover.astype(np.uint16)
  pixel = np.arange(side) // detail
  stripe = (pixel // 2 % 2)[:, None]
  light = (  # in sixteenths: how much of the colour is left unshaded
    np.full((side, 1), 16),
    16 * stripe,
    16 * (stripe ^ stripe.T),
    16 - (8 * pixel // radius)[:, None],
  )[texture].astype(np.uint16)
  return Stamp(cover * light, cover * (16 - light))


def blend(
  below: UInt8[np.ndarray, "*s 3"] | UInt16[np.ndarray, "*s 3"],
  colour: UInt16[np.ndarray, "*#s 3"],
  lit: UInt16[np.ndarray, "*s"],
  dark: UInt16[np.ndarray, "*s"],
) -> UInt8[np.ndarray, "*s 3"]:
  """below * (1 - lit - dark) + colour * lit + (colour / 2) * dark, rounded."""
  lit, dark = lit[..., None], dark[..., None]
  # At most 255 * 256 + 128: a uint16 never overflows.
  total = below * (256 - lit - dark) + colour * lit + (colour // 2) * dark
  return ((total + 128) >> 8).astype(np.uint8)


def centre(level: int, thing: Thing) -> tuple[int, int]:
  """The centre of a thing, (x, y) in pixels."""
  anchors = LEVELS[level].anchors
  row, column = divmod(thing.position, 3)
  return anchors[column] + thing.jitter[0], anchors[row] + thing.jitter[1]


def place(
  level: int, thing: Thing, detail: int = 1
) -> tuple[tuple[slice, slice], Stamp]:
  """The window of pixels that a thing occupies, and its stamp."""
  x, y = centre(level, thing)
  r = LEVELS[level].radii[thing.size]
  span = lambda c: slice((c - r) * detail, (c + r) * detail)
  return (span(y), span(x)), stamp(thing.shape, thing.texture, r, detail)


def covers(mask: Stamp) -> Bool[np.ndarray, "*s"]:
  """Pixels that are at least half object."""
  return mask.lit + mask.dark >= 128


@functools.cache
def _empty(pixels: int, background: int) -> UInt8[np.ndarray, "s s 3"]:
  """A background: plain, dotted every 4 px, or darker towards the bottom."""
  pattern, colour = divmod(background, len(BACKGROUNDS))
  strength = np.full((pixels, pixels, 1), 32)
  if PATTERNS[pattern] == "dotted":
    strength[2::4, 2::4] = 24
  elif PATTERNS[pattern] == "shaded":
    strength -= (np.arange(pixels) * 12 // pixels)[:, None, None]
  # Black cannot get darker: patterns need a ground of at least 48.
  base = np.maximum(GROUND[colour], 48) if pattern else GROUND[colour]
  image = (base * strength // 32).astype(np.uint8)
  image.flags.writeable = False
  return image


def _ink(background: int) -> int:
  """The contrasting grey level: black on a light ground, else white."""
  return 0 if GROUND[background % len(BACKGROUNDS)].sum() > 400 else 255


def _write_number(image: UInt8[np.ndarray, "s s 3"], scene: Scene) -> None:
  """Two 3 x 5 px numerals in a corner, on 9 x 7 px without pattern."""
  rows = [_NUMERALS[int(digit)] for digit in f"{scene.number:02d}"]
  bits = [f"{int(a):03b}0{int(b):03b}" for a, b in zip(*rows, strict=True)]
  marks = np.array([[bit == "1" for bit in line] for line in bits])
  x = 0 if scene.corner % 3 == 0 else len(image) - 9
  y = 0 if scene.corner < 3 else len(image) - 7
  image[y : y + 7, x : x + 9] = GROUND[scene.background % len(BACKGROUNDS)]
  image[y + 1 : y + 6, x + 1 : x + 8][marks] = _ink(scene.background)


def _rule_grating(image: UInt8[np.ndarray, "s s 3"], scene: Scene) -> None:
  """A 10 px square of lines, each 1 px wide and 1 px apart."""
  x, y = centre(scene.level, Thing(0, 0, 0, 0, scene.grating))
  patch = image[y - 5 : y + 5, x - 5 : x + 5]
  lines = patch[:, ::2] if scene.upright else patch[::2]
  lines[...] = _ink(scene.background)


def paint(
  scene: Scene,
) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"]]:
  """The image, and its segmentation: 0 for background, 1 + shape for a thing.

  The number and the grating belong to the background.
  """
  pixels = LEVELS[scene.level].pixels * scene.detail
  image = _empty(pixels, scene.background).copy()
  segmap = np.zeros((pixels, pixels), np.uint8)
  if scene.number is not None:
    _rule_grating(image, scene)
    _write_number(image, scene)
  for thing in (scene.things[k] for k in scene.depth):
    window, mask = place(scene.level, thing, scene.detail)
    image[window] = blend(
      image[window], PALETTES[scene.palette][thing.colour], *mask
    )
    segmap[window][covers(mask)] = 1 + thing.shape
  return image, segmap
