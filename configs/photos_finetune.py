"""Trains the decoder of an autoencoder on, on photographs: five minutes.

  ldm-jax train --config=photos_finetune --workdir=runs/photos_finetune \
      --config.start=runs/photos_autoencoder

Any autoencoder can be the start: a run, a folder of diffusers, a single file.
The recipe is that of sd-vae-ft-mse, with an emphasis on the squared error, and
Muon in place of Adam for the few steps that there are. The encoder keeps every
bit, so that a second stage of its latents can use the result.
--config.task.trains="()" trains everything.
"""

import dataclasses

from photos_autoencoder import get_config as photographs

from ldm_jax.config import Reports
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy

STEPS = 700


def get_config():
  made = photographs()
  optimizer = dataclasses.replace(
    made.task.optimizer, muon=3e-3, decay_steps=STEPS
  )
  task = dataclasses.replace(
    made.task,
    autoencoder=None,
    discriminator=None,
    optimizer=optimizer,
    pixel_norm="l2",
    perceptual_weight=0.1,
    trains=("decoder",),
  )
  return dataclasses.replace(
    made,
    task=task,
    steps=STEPS,
    checkpoints=CheckpointPolicy(every=STEPS // 3, best="psnr", best_is="max"),
    reports=Reports(every=25, previews_every=0, previews=3),
    start="runs/photos_autoencoder",
  )
