"""Whether samples are what they were asked to be, read by `judge`.

Every function compares what is drawn with what was given, and returns numbers
by name; shares lie in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8

from ldm_jax.data.glyphs.scenes import COLOURS
from ldm_jax.data.glyphs.source import ATTRIBUTES
from ldm_jax.evaluation.glyphs.glyph_classifier import LEGAL, GlyphReading
from ldm_jax.evaluation.metrics.psnr import psnr

Images = UInt8[np.ndarray, "b h w 3"]

_SHAPE, _COLOUR = ATTRIBUTES.index("shape"), ATTRIBUTES.index("colour")


def valid_fraction(verdict: GlyphReading) -> dict[str, float]:
  """The share of images that could be of the data set."""
  return {"legal": float((verdict.residual <= LEGAL).mean())}


def class_accuracy(
  verdict: GlyphReading, labels: Int[np.ndarray, " b"]
) -> dict[str, float]:
  """The share whose shape and colour are those of the label, and of each."""
  shape, colour = np.divmod(labels, len(COLOURS))
  is_shape = verdict.attributes[:, _SHAPE] == shape
  is_colour = verdict.attributes[:, _COLOUR] == colour
  return {
    "class_accuracy": float((is_shape & is_colour).mean()),
    "shape_accuracy": float(is_shape.mean()),
    "colour_accuracy": float(is_colour.mean()),
  }


def mean_iou(
  seen: Integer[np.ndarray, "b h w"],
  wanted: Integer[np.ndarray, "b h w"],
  classes: int,
) -> dict[str, float]:
  """Intersection over union, averaged over the classes that are wanted.

  Each class's is taken over the pixels of all images (Long et al. 2015,
  section 5).
  """
  each = []
  for label in range(classes):
    a, b = seen == label, wanted == label
    if b.any():
      each.append((a & b).sum() / (a | b).sum())
  return {"mean_iou": float(np.mean(each))}


def box_iou(
  segmaps: Integer[np.ndarray, "b h w"], boxes: Float[np.ndarray, "b k 5"]
) -> dict[str, float]:
  """Intersection over union of the object's box with the one wanted.

  For images of one object; the mean over them.
  """
  side = segmaps.shape[-1]
  each = []
  for segmap, (x0, y0, x1, y1, _) in zip(segmaps, boxes[:, 0], strict=True):
    ys, xs = np.nonzero(segmap)
    if not len(xs):
      each.append(0.0)
      continue
    low = np.array([xs.min(), ys.min()]) / side
    high = (np.array([xs.max(), ys.max()]) + 1) / side
    meet = np.minimum(high, [x1, y1]) - np.maximum(low, [x0, y0])
    shared = np.prod(np.maximum(meet, 0))
    whole = np.prod(high - low) + (x1 - x0) * (y1 - y0) - shared
    each.append(shared / whole)
  return {"layout_iou": float(np.mean(each))}


def inpainting_accuracy(
  drawn: Images,
  images: Images,
  masks: Bool[np.ndarray, "b h w"],
  verdict: GlyphReading,
) -> dict[str, float]:
  """Whether a hole was filled to fit what is around it.

  "changed_outside" counts pixels that differ outside the masks. "consistent" is
  the share of pictures that are legal with what was drawn in the hole: one
  object of one shape and colour explains what was kept and what is new.
  """
  changed = (drawn != images).any(-1) & ~masks
  return {
    "changed_outside": float(changed.sum()),
    "consistent": valid_fraction(verdict)["legal"],
  }


def upscaling_psnr(
  drawn: Images, images: Images, small: UInt8[np.ndarray, "b h2 w2 3"]
) -> dict[str, float]:
  """How true enlarged pictures are, in dB.

  "psnr_sr" to the originals and "psnr_bicubic" of plain enlargement, mean over
  images; "consistency" of what is drawn, made small again, with what was given.
  """
  from PIL import Image

  size = (images.shape[2], images.shape[1])
  bicubic = Image.Resampling.BICUBIC
  plain = np.stack(
    [np.asarray(Image.fromarray(s).resize(size, bicubic)) for s in small]
  )
  factor = images.shape[1] // small.shape[1]
  count, height, width, _ = small.shape
  cells = drawn.reshape(count, height, factor, width, factor, 3)
  again = cells.astype(np.float32).mean((2, 4))
  return {
    "psnr_sr": _psnr(drawn, images),
    "psnr_bicubic": _psnr(plain, images),
    "consistency": _psnr(again, small),
  }


def _psnr(a: Shaped[np.ndarray, "..."], b: Shaped[np.ndarray, "..."]) -> float:
  whole = lambda x: np.asarray(x, np.float32) / 127.5 - 1
  return float(np.mean(np.minimum(psnr(whole(a), whole(b)), 100.0)))


def caption_accuracy(
  verdict: GlyphReading, neighbours: Sequence[GlyphReading] | GlyphReading
) -> dict[str, float]:
  """How often a sample shares (shape, colour) with one of its neighbours.

  "agreement" is that share, "agreement_chance" the same with each sample held
  against another's neighbours, averaged over all shifts.

  Args:
    neighbours: what the judge says of the k neighbours, k verdicts of b images.
  """
  pair = lambda v: v.attributes[:, _SHAPE] * 64 + v.attributes[:, _COLOUR]
  mine = pair(verdict)
  theirs = np.stack([pair(each) for each in neighbours], axis=1)
  share = lambda shift: (np.roll(theirs, shift, 0) == mine[:, None]).any(1)
  chance = np.mean([share(shift).mean() for shift in range(1, len(mine))])
  return {
    "agreement": float(share(0).mean()),
    "agreement_chance": float(chance),
  }


def diversity(
  verdict: GlyphReading, free: Sequence[str] = ("texture", "size", "position")
) -> dict[str, float]:
  """Entropy of attributes that were not asked for, over that of even dice.

  The mean over the attributes; 1 is as varied as can be, 0 always the same.
  """
  counts = {"texture": 3, "size": 2, "position": 9, "background": 4}
  each = []
  for name in free:
    values = verdict.attributes[:, ATTRIBUTES.index(name)]
    share = np.bincount(values, minlength=counts[name]) / len(values)
    share = share[share > 0]
    each.append(-(share * np.log(share)).sum() / np.log(counts[name]))
  return {"diversity": float(np.mean(each))}
