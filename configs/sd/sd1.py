"""Stable Diffusion 1, 512 x 512, eps.

1.1: 237,000 steps at 256 and 194,000 at 512, then 515,000 (1.2) and up to
225,000 (1.4); 150,000 A100-hours in all. The model card plots FID against CLIP
score and gives no table. 859.5 M parameters, CLIP's text encoder 123.1 M,
frozen.
"""

from base import captioned, clip_l, diffusion, unet_1


def get_config():
  return diffusion(
    unet_1(),
    captioned("laion_aesthetics", 512),
    (clip_l(),),
    batch=2048,
    steps=515_000,
  )
