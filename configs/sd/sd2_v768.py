"""Stable Diffusion 2, 768 x 768, v-prediction.

150,000 steps at 512 and 140,000 at 768 from the base (--config.start). 865.9 M
parameters.

Only plots were published, no figures.
"""

from base import captioned, diffusion, open_clip_h, unet_2


def get_config():
  return diffusion(
    unet_2(),
    captioned("laion5b", 768),
    (open_clip_h(),),
    batch=2048,
    steps=140_000,
    prediction="v",
  )
