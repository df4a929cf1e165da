"""The first stage on the built-in glyphs: twelve minutes on two CPU cores.

A small kl-f4: 32 x 32 pixels to 8 x 8 x 8 latents. It has no perceptual term
and no discriminator: VGG16 alone would take several times as long as this
autoencoder, and an L2 loss suffices for flat colours with sharp edges. For the
full first stage see photos_autoencoder.py.

The weight of the KL term decides how easily the second stage learns the
latents: with 5e-3 the decoder tolerates noise, at a fifth of the nats and 1 dB
less PSNR than with 1e-4. The data contain both palettes, so that a second
stage can be fine-tuned from one to the other.
"""

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask

STEPS = 7000


def get_config():
  return Experiment(
    task=AutoencoderTask(
      autoencoder=Autoencoder(
        ConvStack(
          channels=16,
          multipliers=(1, 2, 2),
          blocks=1,
          has_mid_attention=False,
          groups=4,
        ),
        latent_channels=8,
      ),
      perceptual=None,
      discriminator=None,
      optimizer=Optimizer(
        rate=4e-3,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        warmup=50,
        decay="cosine",
        decay_steps=STEPS,
        clip=100.0,
      ),
      pixel_norm="l2",
      bottleneck_weight=5e-3,
      reduction="sum",
      ema_decay=0.99,
      init_scale=3**0.5,
    ),
    data=Data(
      source=Glyphs(level=0, split="train", palette="both"),
      validation=Glyphs(level=0, split="validation", size=512),
      batch=16,
      held_out=128,
      threads=2,
    ),
    steps=STEPS,
    checkpoints=CheckpointPolicy(every=STEPS, best="psnr", best_is="max"),
    reports=Reports(every=50, previews_every=STEPS),
  )
