"""LDM-4 for super-resolution x4, 64 x 64 to 256 x 256, on ImageNet (bsr_sr).

FID 2.8 (validation), PSNR 24.4 dB, SSIM 0.69 with 100 steps (published, for the
paper's own larger model; the released one has 113.6 M parameters).
"""

import dataclasses

from base import CHURCHES, second_stage, self_attention, tfds

from ldm_jax.data.transforms.degradation import Degradation
from ldm_jax.nn.conditioners.spatial import LowResolution
from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(
    3, 160, (1, 2, 2, 4), 2, self_attention((0, 0, 0, 1), head_width=32)
  )
  data = tfds("imagenet2012", 256, scale=(0.5, 1.0), flip=False)
  return second_stage(
    unet,
    dataclasses.replace(data, transforms=(Degradation(4, "bsrgan"),)),
    stage="vq_f4",
    batch=64,
    rate=6.4e-5,
    steps=860_000,
    schedule=CHURCHES,
    conditioners=(LowResolution(),),
  )
