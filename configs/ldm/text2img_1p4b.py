"""LDM-8, text to image, 256 x 256, on LAION-400M (txt2img-1p4B, 1.45 B).

FID 23.31 on COCO's captions; with guidance 1.5 12.63, inception score 30.29
(published, 250 steps of DDIM, 30k samples). U-Net 872.3 M, text encoder 582.0
M parameters (39.1 M of them unused, left out here).
"""

from base import captioned, cross_attention, second_stage

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet


def get_config():
  # bert-base-uncased: [CLS] text [SEP], padded to 77.
  embedder = TextEmbedder(
    TextEncoder(30_522, width=1280, depth=32), empty=(101, 102)
  )
  unet = UNet(4, 320, (1, 2, 4, 4), 2, cross_attention((1, 1, 1, 0), heads=8))
  return second_stage(
    unet,
    captioned("laion400m", 256),
    stage="kl_f8",
    batch=680,
    rate=1e-4,
    steps=390_000,
    schedule=Schedule(start=0.00085, end=0.012),
    conditioners=(embedder,),
    latent_scale=0.18215,
  )
