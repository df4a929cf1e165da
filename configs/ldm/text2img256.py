"""LDM-4, text to image, 256 x 256: the small model on Conceptual Captions.

FID 16.79, inception score 13.89 with 100 steps (published). U-Net 403.6 M,
text encoder 186.2 M parameters (19.6 M of them in a layer whose output is
unused, which is left out here).
"""

from base import captioned, cross_attention, second_stage

from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet


def get_config():
  # bert-base-uncased: [CLS] text [SEP], padded to 77.
  embedder = TextEmbedder(
    TextEncoder(30_522, width=640, depth=32), empty=(101, 102)
  )
  unet = UNet(
    3, 192, (1, 2, 3, 5), 2, cross_attention((0, 1, 1, 1), head_width=32)
  )
  return second_stage(
    unet,
    captioned("conceptual_captions", 256),
    stage="vq_f4",
    batch=28,
    rate=5.6e-5,
    steps=390_000,
    conditioners=(embedder,),
  )
