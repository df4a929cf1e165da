"""A tiny autoencoder that replaces a larger one, as TAESD replaces SD's.

  ldm-jax train --config=tiny_decoder --config.start=MODEL --workdir=runs/tiny

MODEL is the run, the folder or the file of an autoencoder or of a whole model.
A TinyAutoencoder learns to encode to its scaled latents and to decode them to
its images. The result decodes previews (`ldm-jax serve --preview_decoder`), and
`ldm-jax convert` writes it as diffusers' AutoencoderTiny.

Photographs and crops are those of photos_autoencoder.py, whose autoencoder is a
quarter as wide as the published ones. Every layer has 8 channels here, so that
it decodes ten times faster than that one, and trains for about eight minutes on
two CPU cores. For a model of full size take TAESD's 64
(--config.task.channels=64) and larger crops (--config.data.augment.size=256),
and train longer, on more photographs; LPIPS (--config.task.perceptual=LPIPS)
and a discriminator (--config.task.discriminator=PatchDiscriminator) sharpen it.
"""

import dataclasses

from photos_autoencoder import get_config as photographs

from ldm_jax.config import Reports
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.distillation import DistillationTask

STEPS = 2000


def get_config():
  experiment = photographs()
  data = dataclasses.replace(
    experiment.data,
    augment=Augment(size=64, crop="random", scale=(0.1, 0.25)),
    batch=8,
  )
  return dataclasses.replace(
    experiment,
    task=DistillationTask(
      channels=8,
      optimizer=Optimizer(
        rate=2e-3,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        warmup=50,
        decay="cosine",
        decay_steps=STEPS,
        clip=1.0,
      ),
      ema_decay=0.99,
    ),
    data=data,
    steps=STEPS,
    checkpoints=CheckpointPolicy(every=STEPS // 4, best="psnr", best_is="max"),
    reports=Reports(
      every=25, previews_every=STEPS // 4, previews=data.held_out
    ),
  )
