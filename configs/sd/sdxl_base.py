"""Stable Diffusion XL, base, 1024 x 1024, eps  (Podell et al. 2023).

600,000 steps at 256 and 200,000 at 512 with batches of 2,048, then many aspects
at 1024 with offset noise of 0.05. No FID is claimed. 2,567.5 M parameters;
conditioned on two text encoders, pooled text and six sizes.
"""

from base import (
  CLIP_L,
  OPEN_CLIP_G,
  PADDING,
  captioned,
  diffusion,
)

from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import SizeEmbedder
from ldm_jax.nn.unet import AttentionPlan, UNet


def get_config():
  plan = AttentionPlan((0, 2, 10), 10, None, 64, is_linear=True)
  unet = UNet(4, 320, (1, 2, 4), 2, plan, vector="mlp")
  embedder = ClipEmbedder(
    (CLIP_L, OPEN_CLIP_G),
    (1, 1),
    (PADDING, 0),
    is_normed=False,
    is_pooled=True,
    null="zeros",
    drop_rate=0.1,
  )
  return diffusion(
    unet,
    captioned("laion5b_1024", 1024, size_conditioning="target"),
    (embedder, SizeEmbedder()),
    batch=2048,
    steps=200_000,
    latent_scale=0.13025,
    text_encoders=("models/text_encoder", "models/text_encoder_2"),
    offset_noise=0.05,
  )
