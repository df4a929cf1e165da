"""Stable Diffusion 2 for inpainting, 512 x 512.

200,000 steps from the base (--config.start). 865.9 M parameters.

Only plots were published, no figures.
"""

from base import captioned, diffusion, open_clip_h, unet_2

from ldm_jax.data.transforms.masks import Masks
from ldm_jax.nn.conditioners.spatial import MaskedImage


def get_config():
  return diffusion(
    unet_2(),
    captioned("laion5b", 512, transforms=(Masks(("box", "strokes")),)),
    (open_clip_h(), MaskedImage("sd")),
    batch=2048,
    steps=200_000,
    rate=5e-5,
  )
