"""DC-AE f32c32 in small, on the built-in glyphs of 64 x 64 pixels, on a CPU.

The levels of Chen et al. 2024's f32c32: the finest one has no blocks, the next
two have residual blocks, and the three coarsest attend. It is `width` wide
where the published one is 128, with fewer blocks, and with RMS norms in the
decoder, which is trained here from scratch. Latents are 2 x 2 x 32: 128 numbers
an image, of which it has 25.3 dB on the held-out glyphs after its 1500 steps.

For photographs set --config.data.source and --config.data.validation as in
photos_autoencoder.py, and a perceptual term.
"""

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.nn.deep_compression.autoencoder import DCAutoencoder
from ldm_jax.nn.deep_compression.levels import DCLevel, DCStack
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask

STEPS = 1500
MULTIPLIERS = (1, 2, 4, 4, 8, 8)
BLOCKS = (0, 1, 2, 1, 1, 1)  # published: 0, 4, 8, 2, 2, 2 and 0, 5, 10, 2, 2, 2


def levels(width):
  """The levels of the encoder, and of the decoder."""
  return DCStack(
    tuple(
      DCLevel(width * multiplier, blocks, has_attention=index > 2)
      for index, (multiplier, blocks) in enumerate(
        zip(MULTIPLIERS, BLOCKS, strict=True)
      )
    ),
    head_width=min(32, 4 * width),
  )


def get_config():
  return experiment()


def experiment(width=16, latent_channels=32):
  """Stage one of a width; for others import it in a config of your own."""
  return Experiment(
    task=AutoencoderTask(
      autoencoder=DCAutoencoder(levels(width), levels(width), latent_channels),
      perceptual=None,
      discriminator=None,
      optimizer=Optimizer(
        rate=2e-3,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        warmup=50,
        decay="cosine",
        decay_steps=STEPS,
        clip=100.0,
        muon=1e-2,
      ),
      pixel_norm="l2",
      bottleneck_weight=0.0,
      reduction="sum",
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
    checkpoints=CheckpointPolicy(every=STEPS, best="psnr", best_is="max"),
    reports=Reports(every=50, previews_every=STEPS),
  )
