"""Stable Diffusion 2 conditioned on text and depth, 512 x 512.

MiDaS' depth map of every image as NAME.depth.png. 200,000 steps from the base
(--config.start). 865.9 M parameters.

Only plots were published, no figures.
"""

from base import captioned, diffusion, open_clip_h, unet_2

from ldm_jax.nn.conditioners.spatial import DepthMap


def get_config():
  return diffusion(
    unet_2(),
    captioned("laion5b", 512),
    (open_clip_h(), DepthMap(cell=8)),
    batch=2048,
    steps=200_000,
    rate=5e-5,
  )
