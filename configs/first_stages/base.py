"""Functions shared by the configs of first stages of later papers.

They are trained from scratch on ImageNet as tensorflow-datasets prepares it
(see ldm_jax/data/sources/tfds_source.py); for photographs of one's own set
--config.data.source and --config.data.validation as in photos_autoencoder.py.
In small, on the built-in glyphs, each trains on a CPU with

  --config.task.autoencoder.trunk.channels=16
  --config.task.autoencoder.trunk.groups=4
  --config.task.perceptual=none --config.task.discriminator=none
  --config.data.source=Glyphs --config.data.validation=Glyphs
  --config.data.validation.split=validation --config.data.augment=none
"""

from ldm_jax.config import Data, Experiment
from ldm_jax.data.sources.tfds_source import tfds_source
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask

EPOCH = 1_281_167  # images of ImageNet


def first_stage(autoencoder, *, rate, batch, steps, disc_start, **task):
  """LDM's losses, L1 and LPIPS, KL and discriminator, on crops of 256."""
  adam = Optimizer(rate, (0.5, 0.9), weight_decay=0.0)
  return Experiment(
    task=AutoencoderTask(
      autoencoder,
      optimizer=adam,
      critic_optimizer=adam,
      disc_start=disc_start,
      **task,
    ),
    data=Data(
      source=tfds_source("imagenet2012", "train"),
      validation=tfds_source("imagenet2012", "validation"),
      augment=Augment(256),
      batch=batch,
    ),
    steps=steps,
    checkpoints=CheckpointPolicy(every=5000, best="psnr", best_is="max"),
  )


def f16(channels, **task):
  """VA-VAE's f16 for 50 epochs (Yao et al. 2025), of so many channels."""
  trunk = ConvStack(multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))
  return first_stage(
    Autoencoder(trunk, channels),
    rate=1e-4,
    batch=256,
    steps=50 * EPOCH // 256,
    disc_start=5001,
    **task,
  )
