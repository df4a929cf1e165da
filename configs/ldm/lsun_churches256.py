"""LDM-8 (KL) on LSUN's churches, unconditional, 256 x 256.

FID 4.02, precision 0.64, recall 0.52 with DDIM (eta 0) and 50k samples
(published; 400 steps in the README, 200 in the paper); 18 V100-days. 295.0 M
parameters. Latents are divided by their measured standard deviation.
"""

from base import CHURCHES, second_stage, self_attention, tfds

from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(
    out_channels=4,
    channels=192,
    multipliers=(1, 2, 2, 4, 4),
    attention=self_attention((1, 1, 1, 1, 0), heads=8),
    modulation="scale_shift",
    resampling="block",
  )
  return second_stage(
    unet,
    tfds("lsun/church", 256, crop="center"),
    stage="kl_f8",
    batch=96,
    rate=5e-5,
    steps=500_000,
    schedule=CHURCHES,
    norm="l1",
    warmup=10_000,
    latent_scale=None,
  )
