"""LDM-4 on LSUN's bedrooms, unconditional, 256 x 256.

FID 2.95, precision 0.66, recall 0.48 with 200 steps of DDIM (eta 1) and 50k
samples (published); 60 V100-days. 274.1 M parameters.
"""

from base import second_stage, self_attention, tfds

from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(
    3, 224, (1, 2, 3, 4), 2, self_attention((0, 1, 1, 1), head_width=32)
  )
  return second_stage(
    unet,
    tfds("lsun/bedroom", 256, crop="center"),
    stage="vq_f4",
    batch=48,
    rate=9.6e-5,
    steps=1_900_000,
  )
