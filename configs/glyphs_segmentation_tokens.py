"""Segmentation map to image on the built-in glyphs, as 64 context tokens."""

from glyphs_base import second_stage

from ldm_jax.nn.conditioners.spatial import SegmentationEmbedder


def get_config():
  return second_stage(
    SegmentationEmbedder(classes=7, width=64, joins="context", positions=64)
  )
