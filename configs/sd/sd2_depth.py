"""Stable Diffusion 2 by text and depth, 512 x 512.

MiDaS' depth of every picture as name.depth.png. 200,000 steps from the base
(--config.start). 865.9 M parameters.

No figure beside plots was published.
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
