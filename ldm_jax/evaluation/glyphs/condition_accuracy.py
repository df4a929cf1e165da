"""How well samples of the glyphs match the conditions they were generated for.

Every function compares samples, or what `read_glyphs` reads in them, with the
conditions, and returns numbers by name; fractions lie in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8

from ldm_jax.data.glyphs.scenes import COLOURS
from ldm_jax.data.glyphs.source import ATTRIBUTES
from ldm_jax.evaluation.glyphs.glyph_classifier import (
  MAX_VALID_RESIDUAL,
  GlyphReading,
)
from ldm_jax.evaluation.metrics.psnr import psnr

Images = UInt8[np.ndarray, "b h w 3"]

_SHAPE, _COLOUR = ATTRIBUTES.index("shape"), ATTRIBUTES.index("colour")


def valid_fraction(reading: GlyphReading) -> dict[str, float]:
  """The fraction of images that the data set could contain."""
  is_valid = reading.residual <= MAX_VALID_RESIDUAL
  return {"valid_fraction": float(is_valid.mean())}


def class_accuracy(
  reading: GlyphReading, labels: Int[np.ndarray, " b"]
) -> dict[str, float]:
  """The fraction whose shape and colour match the label, and each alone."""
  shape, colour = np.divmod(labels, len(COLOURS))
  is_shape = reading.attributes[:, _SHAPE] == shape
  is_colour = reading.attributes[:, _COLOUR] == colour
  return {
    "class_accuracy": float((is_shape & is_colour).mean()),
    "shape_accuracy": float(is_shape.mean()),
    "colour_accuracy": float(is_colour.mean()),
  }


def mean_iou(
  found: Integer[np.ndarray, "b h w"],
  target: Integer[np.ndarray, "b h w"],
  classes: int,
) -> dict[str, float]:
  """Mean intersection over union of the classes that the target contains.

  That of a class is taken over the pixels of all images (Long et al. 2015,
  section 5).
  """
  each = []
  for label in range(classes):
    a, b = found == label, target == label
    if b.any():
      each.append((a & b).sum() / (a | b).sum())
  return {"mean_iou": float(np.mean(each))}


def box_iou(
  segmaps: Integer[np.ndarray, "b h w"], boxes: Float[np.ndarray, "b k 5"]
) -> dict[str, float]:
  """Intersection over union of the object's bounding box with the given one.

  For images of one object; the mean over images. `boxes` holds x0, y0, x1, y1
  in [0, 1] and a class.
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
    overlap = np.minimum(high, [x1, y1]) - np.maximum(low, [x0, y0])
    intersection = np.prod(np.maximum(overlap, 0))
    union = np.prod(high - low) + (x1 - x0) * (y1 - y0) - intersection
    each.append(intersection / union)
  return {"layout_iou": float(np.mean(each))}


def inpainting_accuracy(
  samples: Images,
  images: Images,
  masks: Bool[np.ndarray, "b h w"],
  reading: GlyphReading,
) -> dict[str, float]:
  """Whether an inpainted region fits its surroundings.

  "changed_outside" counts pixels that differ outside the masks. "consistent" is
  the fraction of images that are valid as a whole: one object of one shape and
  colour explains the pixels that were kept and those that were generated.
  """
  changed = (samples != images).any(-1) & ~masks
  return {
    "changed_outside": float(changed.sum()),
    "consistent": valid_fraction(reading)["valid_fraction"],
  }


def upscaling_psnr(
  samples: Images, images: Images, small: UInt8[np.ndarray, "b h2 w2 3"]
) -> dict[str, float]:
  """PSNR of super-resolution in dB, mean over images.

  "psnr_sr" of the samples and "psnr_bicubic" of bicubic interpolation, both to
  the originals; "consistency" of the downsampled samples to the low-resolution
  images that were given.
  """
  from PIL import Image

  size = (images.shape[2], images.shape[1])
  bicubic = Image.Resampling.BICUBIC
  interpolated = np.stack(
    [np.asarray(Image.fromarray(s).resize(size, bicubic)) for s in small]
  )
  factor = images.shape[1] // small.shape[1]
  count, height, width, _ = small.shape
  cells = samples.reshape(count, height, factor, width, factor, 3)
  downsampled = cells.astype(np.float32).mean((2, 4))
  return {
    "psnr_sr": _psnr(samples, images),
    "psnr_bicubic": _psnr(interpolated, images),
    "consistency": _psnr(downsampled, small),
  }


def _psnr(a: Shaped[np.ndarray, "..."], b: Shaped[np.ndarray, "..."]) -> float:
  """Mean PSNR of images in grey levels, each at most 100 dB."""
  scaled = lambda x: np.asarray(x, np.float32) / 127.5 - 1
  return float(np.mean(np.minimum(psnr(scaled(a), scaled(b)), 100.0)))


def neighbour_agreement(
  reading: GlyphReading, neighbours: Sequence[GlyphReading] | GlyphReading
) -> dict[str, float]:
  """How often a sample has the shape and colour of one of its neighbours.

  "agreement" is that fraction; "agreement_chance" is the same for samples
  compared with the neighbours of other samples, averaged over all shifts.

  Args:
    neighbours: readings of the k neighbours of each sample, k of b images.
  """
  pair = lambda r: r.attributes[:, _SHAPE] * 64 + r.attributes[:, _COLOUR]
  ours = pair(reading)
  theirs = np.stack([pair(each) for each in neighbours], axis=1)
  agrees = lambda shift: (np.roll(theirs, shift, 0) == ours[:, None]).any(1)
  chance = np.mean([agrees(shift).mean() for shift in range(1, len(ours))])
  return {
    "agreement": float(agrees(0).mean()),
    "agreement_chance": float(chance),
  }


def diversity(
  reading: GlyphReading, free: Sequence[str] = ("texture", "size", "position")
) -> dict[str, float]:
  """Entropy of the attributes that no condition fixes, over its maximum.

  The mean over the attributes: 1 for a uniform distribution, 0 for a constant.
  """
  counts = {"texture": 3, "size": 2, "position": 9, "background": 4}
  each = []
  for name in free:
    values = reading.attributes[:, ATTRIBUTES.index(name)]
    p = np.bincount(values, minlength=counts[name]) / len(values)
    p = p[p > 0]
    each.append(-(p * np.log(p)).sum() / np.log(counts[name]))
  return {"diversity": float(np.mean(each))}
