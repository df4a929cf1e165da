"""Stable Diffusion 1.5 for inpainting: nine channels in, 512 x 512.

440,000 steps from SD 1.5 (set --config.start); the five new input channels
start at zero. No figure was published. 859.5 M parameters.
"""

from base import captioned, clip_l, diffusion, unet_1

from ldm_jax.data.transforms.masks import Masks
from ldm_jax.nn.conditioners.spatial import MaskedImage


def get_config():
  return diffusion(
    unet_1(),
    captioned("laion_aesthetics", 512, transforms=(Masks(("box", "strokes")),)),
    (clip_l(), MaskedImage("sd")),
    batch=2048,
    steps=440_000,
    rate=7.5e-5,
  )
