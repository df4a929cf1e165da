"""LDM-4, layout to image, 256 x 256, on OpenImages.

FID 32.02 with 200 steps of DDIM (published). U-Net 246.3 M, layout encoder
58.9 M parameters (4.2 M unused, left out here). 92 tokens: three for each of 30
objects, two for the crop.
"""

from base import L1, cross_attention, open_images, second_stage

from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.nn.conditioners.embedders import LayoutEmbedder
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(
    3,
    128,
    (1, 2, 3, 4),
    2,
    cross_attention((0, 3, 3, 3), head_width=32, mid_depth=3),
  )
  encoder = TextEncoder(8192, width=512, depth=16, length=92)
  return second_stage(
    unet,
    open_images(256, transforms=(LayoutTokens(8192, 30),)),
    stage="vq_f4",
    batch=24,
    rate=4.8e-5,
    steps=4_400_000,
    schedule=L1,
    conditioners=(LayoutEmbedder(encoder),),
    norm="l1",
  )
