"""Metrics of samples of the glyphs, by the conditions of the model."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from ldm_jax.data.glyphs.source import SHAPES
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.evaluation.glyphs import condition_accuracy
from ldm_jax.evaluation.glyphs.glyph_classifier import (
  GlyphReading,
  attribute_accuracy,
  read_glyphs,
)
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  SegmentationEmbedder,
)

Images = UInt8[np.ndarray, "b h w 3"]
Examples = Mapping[str, np.ndarray]


def condition_metrics(
  model: LatentDiffusion,
  samples: Images,
  held_out: Examples,
  read: Callable[[Images], GlyphReading] = read_glyphs,
) -> dict[str, float]:
  """The fraction of valid samples, and how well each condition is met.

  Args:
    held_out: the examples whose conditions the samples were generated for.
  """
  reading = read(samples)
  metrics = condition_accuracy.valid_fraction(reading)
  for part in model.conditioners:
    key = part.input_key
    if isinstance(part, ClassEmbedder):
      metrics |= condition_accuracy.class_accuracy(reading, held_out[key])
      metrics |= condition_accuracy.diversity(reading)
    elif isinstance(part, TextEmbedder):
      metrics |= attribute_accuracy(reading, held_out["attributes"])
    elif isinstance(part, SegmentationEmbedder):
      metrics |= condition_accuracy.mean_iou(
        reading.segmap, held_out[key], part.classes
      )
    elif isinstance(part, LayoutEmbedder):
      metrics |= condition_accuracy.box_iou(reading.segmap, held_out["boxes"])
    elif isinstance(part, MaskedImage):
      metrics |= condition_accuracy.inpainting_accuracy(
        samples, held_out["image"], held_out[key], reading
      )
    elif isinstance(part, LowResolution):
      metrics |= condition_accuracy.upscaling_psnr(
        samples, held_out["image"], held_out[key]
      )
  return metrics


def reconstruction_metrics(
  reading: GlyphReading, held_out: Examples
) -> dict[str, float]:
  """What is read correctly in reconstructions of the examples."""
  iou = condition_accuracy.mean_iou(
    reading.segmap, held_out["segmap"], 1 + len(SHAPES)
  )
  accuracy = attribute_accuracy(reading, held_out["attributes"])
  return iou | {"all": accuracy["all"]}


def retrieval_metrics(
  database: Neighbours, source: Neighbours, samples: Images
) -> dict[str, float]:
  """How often samples agree with the neighbours they were conditioned on.

  Args:
    database: the training source, whose examples are the neighbours.
    source: of the held-out examples, whose neighbours were found.
  """
  indices = np.stack([source.places(i) for i in range(len(samples))])
  neighbours = [
    read_glyphs(np.stack([database.source[int(i)]["image"] for i in column]))
    for column in indices.T
  ]
  return condition_accuracy.neighbour_agreement(
    read_glyphs(samples), neighbours
  )
