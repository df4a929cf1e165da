"""LDM-4 on ImageNet, class-conditional, 256 x 256 (cin256-v2).

FID 10.56, inception score 103.5 with 250 steps of DDIM; with guidance 1.5
3.60 and 247.7 (published); 271 V100-days. 400.9 M parameters. Row 1,000 of the
embedding table is the unconditional class.
"""

from base import cross_attention, second_stage, tfds

from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(3, 192, (1, 2, 3, 5), 2, cross_attention((0, 1, 1, 1), heads=1))
  return second_stage(
    unet,
    tfds("imagenet2012", 256, flip=False),
    stage="vq_f4",
    batch=1200,
    rate=1e-4,
    steps=178_000,
    conditioners=(ClassEmbedder(1000, 512, drop_rate=0.1),),
  )
