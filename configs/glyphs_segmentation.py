"""Segmentation map to image on the built-in glyphs.

The map is concatenated with x_t (LDM's SpatialRescaler).
"""

from glyphs_base import second_stage

from ldm_jax.nn.conditioners.spatial import SegmentationEmbedder


def get_config():
  return second_stage(SegmentationEmbedder(classes=7, width=16), kind="plain")
