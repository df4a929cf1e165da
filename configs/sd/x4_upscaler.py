"""Stable Diffusion's x4 upscaler: 128 x 128 to 512 x 512, text-conditional.

v-prediction, 1.25 M steps on crops of 512. The low-resolution image is noised
at levels 0 to 349, and the network is conditioned on the level. 473.4 M
parameters; its first stage is kl-f4 with four latent channels.

Only plots were published, no figures.
"""

from base import captioned, diffusion, open_clip_h

from ldm_jax.data.transforms.degradation import Degradation
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.nn.conditioners.spatial import LowResolution
from ldm_jax.nn.unet import AttentionPlan, UNet


def get_config():
  plan = AttentionPlan(
    (0, 1, 1, 1),
    heads=8,
    is_linear=True,
    cross_only=(True, True, True, False),
  )
  unet = UNet(4, 256, (1, 2, 2, 4), 2, plan, vector="table")
  noise = Schedule(start=0.0001, end=0.02)
  return diffusion(
    unet,
    captioned("laion5b_2048", 512, transforms=(Degradation(4, "bicubic"),)),
    (open_clip_h(), LowResolution(levels=1000, max_train_level=350)),
    batch=2048,
    steps=1_250_000,
    schedule=noise,
    prediction="v",
    latent_scale=0.08333,
    noise_augmentation_schedule=noise,
    stage="kl_f4_z4",
  )
