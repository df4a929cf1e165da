"""Classifies images of `Glyphs` level 0 by the nearest image of the data set.

An image is compared with every image that the data set can generate (analysis
by synthesis). Nothing is learned, so there is no classifier that samples could
exploit. Levels above 0 have too many possible images and are not supported.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Shaped, UInt8, UInt16

from ldm_jax.data.glyphs.scenes import (
  GROUND,
  LEVELS,
  PALETTES,
  POSITIONS,
  SIZES,
  Stamp,
  Thing,
  blend,
  covers,
  place,
)
from ldm_jax.data.glyphs.source import ATTRIBUTES

# RMSE in grey levels up to which an image counts as valid: noise of this sigma
# leaves every attribute readable; a blur over two pixels or a blend of two
# images exceeds it.
MAX_VALID_RESIDUAL = 12.0

# In the order of the report, easiest first.
_REPORTED = ("colour", "background", "size", "position", "texture", "shape")
_PIXELS = LEVELS[0].pixels
_CHUNK = 32  # images at a time: 93,312 distances each, 12 MB in all


class GlyphReading(NamedTuple):
  """The nearest images of the data set, and the distances to them.

  Attributes:
    attributes: indices of shape, colour, ..., in the data set's order.
    residual: root mean square difference in grey levels, 0 to 255; at most
      `MAX_VALID_RESIDUAL` for a valid image, and infinite where an image of
      the background alone is nearer.
    segmap: classes of the pixels, 0 for the background.
  """

  attributes: Int32[np.ndarray, "b 6"]
  residual: Float[np.ndarray, " b"]
  segmap: UInt8[np.ndarray, "b s s"]


class _Templates(NamedTuple):
  """All k possible objects, without colours: coverage of pixels in 256ths.

  `attributes` are shape, texture, size and position.
  """

  attributes: Int32[np.ndarray, "k 4"]
  lit: UInt16[np.ndarray, "k p"]
  dark: UInt16[np.ndarray, "k p"]


@functools.lru_cache(maxsize=1)
def _templates() -> _Templates:
  rules = LEVELS[0]
  reach = range(-rules.jitter, rules.jitter + 1)
  names, lits, darks = [], [], []
  for shape, texture, size, position, *jitter in itertools.product(
    range(rules.shapes),
    range(rules.textures),
    range(len(SIZES)),
    range(len(POSITIONS)),
    reach,
    reach,
  ):
    thing = Thing(shape, 0, texture, size, position, tuple(jitter))
    window, mask = place(0, thing)
    for planes, plane in ((lits, mask.lit), (darks, mask.dark)):
      planes.append(np.zeros((_PIXELS, _PIXELS), np.uint16))
      planes[-1][window] = plane
    names.append((shape, texture, size, position))
  lit, dark = (np.stack(p).reshape(len(names), -1) for p in (lits, darks))
  return _Templates(np.array(names, np.int32), lit, dark)


class _Terms(NamedTuple):
  """The terms of |x - ground * bare - colour * ink|^2 - |x|^2.

  bare = 1 - lit - dark and ink = lit + dark / 2. `squares` holds |bare|^2,
  <bare, ink> and |ink|^2. `weights` multiplies <x, bare> and <x, ink> (three
  channels each) and the squares, for each of the 32 (ground, colour) pairs q.
  """

  bare: Float32[np.ndarray, "p k"]
  ink: Float32[np.ndarray, "p k"]
  squares: Float32[np.ndarray, "3 k"]
  weights: Float32[np.ndarray, "q 9"]


@functools.lru_cache(maxsize=2)
def _terms(palette: int) -> _Terms:
  lit, dark = (plane.T / 256 for plane in _templates()[1:])
  bare, ink = 1 - lit - dark, lit + dark / 2
  squares = np.stack([bare * bare, bare * ink, ink * ink]).sum(1)
  paint = PALETTES[palette].astype(float)
  ground = np.repeat(GROUND.astype(float), len(paint), 0)
  colour = np.tile(paint, (len(GROUND), 1))
  products = (ground * ground, 2 * ground * colour, colour * colour)
  weights = np.concatenate(
    [-2 * ground, -2 * colour, np.stack(products).sum(2).T], axis=1
  )
  # float32 errs by some tens in a squared distance; two images of the data set
  # with different attributes differ by 31,000 (177 squared) or more.
  return _Terms(*(a.astype(np.float32) for a in (bare, ink, squares, weights)))


def _nearest(
  images: UInt8[np.ndarray, "b 32 32 3"], palette: int
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
  """Template, background and colour of the nearest image of the data set."""
  terms = _terms(palette)
  b, k = len(images), terms.bare.shape[1]
  # One flat product: numpy is twelve times slower on a stack of strided ones.
  x = images.transpose(0, 3, 1, 2).astype(np.float32, "C").reshape(3 * b, -1)
  bare, ink = ((x @ a).reshape(b, 3, k) for a in (terms.bare, terms.ink))
  squares = np.broadcast_to(terms.squares, (b, 3, k))
  products = np.concatenate([bare, ink, squares], axis=1)
  distances = terms.weights @ products
  pair, template = np.divmod(distances.reshape(b, -1).argmin(1), k)
  ground, colour = np.divmod(pair, len(PALETTES[palette]))
  return template, ground, colour


def _read_chunk(
  images: UInt8[np.ndarray, "b 32 32 3"], palette: int
) -> GlyphReading:
  template, ground, colour = _nearest(images, palette)
  names, lit, dark = (plane[template] for plane in _templates())
  flat = images.reshape(len(images), -1, 3)
  empty = np.broadcast_to(GROUND[ground][:, None], flat.shape)
  nearest = blend(empty, PALETTES[palette][colour][:, None], lit, dark)
  mean_square = lambda y: np.square(flat.astype(np.float32) - y).mean((1, 2))
  error = mean_square(nearest)
  shape, texture, size, position = names.T
  segmap = (covers(Stamp(lit, dark)) * (1 + shape[:, None])).astype(np.uint8)
  return GlyphReading(
    np.stack(
      [shape, colour, texture, size, position, ground], 1, dtype=np.int32
    ),
    np.where(mean_square(empty) < error, np.inf, np.sqrt(error)),
    segmap.reshape(images.shape[:3]),
  )


def _downsample(
  images: UInt8[np.ndarray, "b h w 3"], detail: int
) -> UInt8[np.ndarray, "b h2 w2 3"]:
  """Means over detail x detail pixels, rounded half up."""
  b, side = len(images), images.shape[1] // detail
  blocks = images.reshape(b, side, detail, side, detail, 3)
  return np.floor(blocks.mean((2, 4)) + 0.5).astype(np.uint8)


def read_glyphs(
  images: Shaped[np.ndarray, "b h w c"], palette: int = 0
) -> GlyphReading:
  """argmin |x - y| over all 93,312 images y (with the jitter) of level 0.

  Under white noise this is the maximum likelihood estimate. All colours and
  shapes are compared jointly; pairs that training holds out are included.

  Args:
    images: uint8 [b, 32, 32, 3], b >= 1; or of a side of 64 or 128 pixels,
      which are downsampled to 32.
    palette: index of the colours, see scenes.PALETTES.

  Raises:
    ValueError: the images are of another shape or type.
  """
  detail = images.shape[1] // _PIXELS
  wanted = (_PIXELS * detail, _PIXELS * detail, 3)
  is_fit = images.shape[1:] == wanted and detail in (1, 2, 4)
  if not is_fit or images.dtype != np.uint8 or not len(images):
    raise ValueError(
      f"images are {images.dtype} {list(images.shape)} and must be uint8"
      f" [b, {_PIXELS}, {_PIXELS}, 3], b >= 1: only Glyphs level 0 is supported"
    )
  images = _downsample(images, detail)
  chunks = range(0, len(images), _CHUNK)
  readings = [_read_chunk(images[i : i + _CHUNK], palette) for i in chunks]
  whole = GlyphReading(
    *(np.concatenate(part) for part in zip(*readings, strict=True))
  )
  # At the resolution of the images that were given.
  segmap = whole.segmap.repeat(detail, 1).repeat(detail, 2)
  return whole._replace(segmap=segmap)


def attribute_accuracy(
  reading: GlyphReading, attributes: Shaped[np.ndarray, "b 6"]
) -> dict[str, float]:
  """Accuracy of each attribute, and "all": the fraction with all six right.

  Args:
    attributes: those of the captions, in the data set's order.

  Raises:
    ValueError: the numbers of images differ.
  """
  if attributes.shape != reading.attributes.shape:
    raise ValueError(
      f"attributes are {list(attributes.shape)} and those that were read are"
      f" {list(reading.attributes.shape)}; pass one row of six for each image"
    )
  is_right = reading.attributes == attributes
  scores = {
    n: float(is_right[:, ATTRIBUTES.index(n)].mean()) for n in _REPORTED
  }
  return scores | {"all": float(is_right.all(1).mean())}
