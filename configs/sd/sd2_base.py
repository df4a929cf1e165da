"""Stable Diffusion 2 base, 512 x 512, eps.

550,000 steps at 256 and 850,000 at 512; 2.1 another 220,000. Only plots
were published. 865.9 M parameters, OpenCLIP's text encoder frozen.
"""

from base import captioned, diffusion, open_clip_h, unet_2


def get_config():
  return diffusion(
    unet_2(),
    captioned("laion5b", 512),
    (open_clip_h(),),
    batch=2048,
    steps=850_000,
  )
