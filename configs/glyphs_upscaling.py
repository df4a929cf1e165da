"""Super-resolution x4 on the built-in glyphs, from means of 4 x 4 pixels."""

from glyphs_base import second_stage

from ldm_jax.data.transforms.degradation import Degradation
from ldm_jax.nn.conditioners.spatial import LowResolution


def get_config():
  return second_stage(
    LowResolution(), kind="plain", transforms=(Degradation(kind="area"),)
  )
