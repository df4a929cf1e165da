"""Stage two on the built-in glyphs: text to image, two cores, five minutes.

A U-Net of 2.5 M parameters on the 8 x 8 x 8 latents of glyphs_autoencoder.py,
told by a small transformer that is trained with it. So few latents show what
is in them through much noise: only the noisiest times are left to learn from
the words. The velocity (as in Stable Diffusion 2) weighs those times as much
as the others, where the noise would weigh them by their signal.
"""

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs import Glyphs
from ldm_jax.data.tokens import Tokenizer
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioner import TextEmbedder
from ldm_jax.nn.text import TextEncoder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.checkpoint import Keeping
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.tasks.denoising import Denoising

STEPS = 1250
LENGTH = 20


def get_config():
  return Experiment(
    task=Denoising(
      model=LatentDiffusion(
        unet=UNet(
          out_channels=8,
          channels=48,
          multipliers=(1, 2),
          blocks=1,
          attention=AttentionPlan(depths=(0, 1), heads=4),
          vector="mlp",
          octaves=3,
          modulation="scale_shift",
          groups=12,
        ),
        schedule=Schedule(start=0.0015, end=0.0205),
        prediction="v",
        conditioners=(
          TextEmbedder(
            TextEncoder(
              vocabulary=128,
              width=128,
              depth=1,
              heads=4,
              head_width=32,
              length=LENGTH,
            ),
            is_pooled=True,
          ),
        ),
      ),
      optimizer=Optimizer(
        rate=7e-4,
        betas=(0.9, 0.99),
        warmup=20,
        decay="cosine",
        decay_steps=STEPS,
        clip=1.0,
      ),
      loss=DenoisingLoss("v"),
      ema_decay=0.99,
      preview_steps=10,
    ),
    data=Data(
      source=Glyphs(level=0, split="train"),
      validation=Glyphs(level=0, split="validation", size=512),
      tokenizer=Tokenizer(kind="word", vocabulary=128, length=LENGTH),
      batch=32,
      held_out=128,
      threads=2,
    ),
    steps=STEPS,
    checkpoints=Keeping(every=STEPS, best="loss"),
    # The report draws; a preview would take as long as sixty steps to compile.
    reports=Reports(every=50, previews_every=0),
  )
