"""LDM-8 on ImageNet, class-conditional, 256 x 256 (cin256, the first release).

FID 15.51, inception score 79.0 after 4.8 M steps with 200 steps of DDIM; with
classifier guidance of scale 10 (imagenet256_f8_classifier.py) 7.76 and 209.5
(published); 79 V100-days. 395.0 M parameters.
"""

from base import cross_attention, second_stage, tfds

from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(4, 256, (1, 2, 4), 2, cross_attention((1, 1, 1), head_width=32))
  return second_stage(
    unet,
    tfds("imagenet2012", 256, flip=False),
    stage="vq_f8",
    batch=64,
    rate=6.4e-5,
    steps=4_800_000,
    # 1,000 rows in the release, which never dropped a class.
    conditioners=(ClassEmbedder(1000, 512, drop_rate=0.0),),
  )
