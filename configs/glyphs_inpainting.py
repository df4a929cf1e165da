"""Inpainting on the built-in glyphs, with masks of boxes, strokes and objects.

Stable Diffusion's convention: the mask and the latents of the masked image are
concatenated with x_t.
"""

from glyphs_base import second_stage

from ldm_jax.data.transforms.masks import Masks
from ldm_jax.nn.conditioners.spatial import MaskedImage


def get_config():
  return second_stage(MaskedImage("sd"), kind="plain", transforms=(Masks(),))
