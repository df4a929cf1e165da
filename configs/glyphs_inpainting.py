"""Filling holes in the built-in glyphs: boxes, strokes and objects.

Stable Diffusion's convention: the mask and the latents of what is kept. A tenth
of the training hears nothing of them, so that guidance has something to leave.
"""

from glyphs_base import second_stage

from ldm_jax.data.masks import Masks
from ldm_jax.nn.spatial import MaskedImage


def get_config():
  told = MaskedImage("sd", drop_rate=0.1)
  return second_stage(told, kind="plain", views=(Masks(),))
