"""Stable Diffusion XL's refiner, 1024 x 1024, eps  (Podell et al. 2023).

Conditioned on OpenCLIP's ViT-bigG, sizes and an aesthetic score ("score" in
metadata.jsonl). The authors trained it on the 200 least noisy times; here it is
trained on all. No figure was published. 2,259.5 M parameters.
"""

from base import OPEN_CLIP_G, captioned, diffusion

from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import SizeEmbedder
from ldm_jax.nn.unet import AttentionPlan, UNet


def get_config():
  plan = AttentionPlan((0, 4, 4, 0), 4, None, 64, is_linear=True)
  unet = UNet(4, 384, (1, 2, 4, 4), 2, plan, vector="mlp")
  embedder = ClipEmbedder(
    (OPEN_CLIP_G,),
    (1,),
    (0,),
    is_normed=False,
    is_pooled=True,
    drop_rate=0.1,
  )
  return diffusion(
    unet,
    captioned("laion5b_1024", 1024, size_conditioning="score"),
    (embedder, SizeEmbedder("score")),
    batch=2048,
    steps=200_000,
    latent_scale=0.13025,
    text_encoders=("models/text_encoder_2",),
  )
