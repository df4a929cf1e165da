"""Stage one on the built-in glyphs, for two cores and twelve minutes.

kl-f4 in small: 32 x 32 pixels to 8 x 8 x 8 latents. No perceptual term and no
critic: VGG16 alone would take several times as long as the autoencoder here,
and flat colours with sharp edges come back from squared errors alone. The full
first stage is in photos_autoencoder.py.

The price of the bottleneck is what makes its latents easy to learn: at 5e-3 the
decoder bears noise, at a fifth of the nats and 1 dB less than at 1e-4. Both
palettes are shown, so that a second stage may be led from one to the other.
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
