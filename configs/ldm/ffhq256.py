"""LDM-4 on FFHQ, unconditional, 256 x 256.

FID 4.98, precision 0.73, recall 0.50 with 200 steps of DDIM (eta 1) and 50k
samples (published); 26 V100-days. 274.1 M parameters.
"""

from base import folders, second_stage, self_attention

from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(
    3, 224, (1, 2, 3, 4), 2, self_attention((0, 1, 1, 1), head_width=32)
  )
  return second_stage(
    unet,
    folders("ffhq", 256),
    stage="vq_f4",
    batch=42,
    rate=8.4e-5,
    steps=635_000,
  )
