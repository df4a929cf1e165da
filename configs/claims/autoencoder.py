"""A first stage for 64 x 64 pixels, to be weighed: f and channels by flags.

  --config.task.autoencoder.trunk.multipliers="(1, 2, 2)"   f = 4
  --config.task.autoencoder.latent_channels=8
  --config.task.bottleneck_weight=1e-6

Few steps, so that many can be compared; see benchmarks/claims.py.
"""

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs import Glyphs
from ldm_jax.nn.autoencoder import Autoencoder, Trunk
from ldm_jax.nn.bottleneck import GaussianBottleneck
from ldm_jax.runtime.keeping import Keeping
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.tasks.autoencoding import Autoencoding

STEPS = 600


def get_config(
  bottleneck=GaussianBottleneck(), price=1e-6, reduction="sum", clip=100.0
):
  return Experiment(
    task=Autoencoding(
      autoencoder=Autoencoder(
        Trunk(
          channels=16,
          multipliers=(1, 2, 2),
          blocks=1,
          has_mid_attention=False,
          groups=4,
        ),
        latent_channels=4,
        bottleneck=bottleneck,
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
        clip=clip,
      ),
      pixel_norm="l2",
      bottleneck_weight=price,
      reduction=reduction,
      ema_decay=0.99,
      init_scale=3**0.5,
    ),
    data=Data(
      source=Glyphs(level=0, split="train", detail=2),
      validation=Glyphs(level=0, split="validation", size=512, detail=2),
      batch=8,
      held_out=128,
      threads=2,
    ),
    steps=STEPS,
    checkpoints=Keeping(every=STEPS),
    reports=Reports(every=50, previews_every=0),
  )
