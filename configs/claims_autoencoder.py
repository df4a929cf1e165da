"""A first stage for 64 x 64 pixels; f and the latent channels are set by flags.

  --config.task.autoencoder.trunk.multipliers="(1, 2, 2)"   f = 4
  --config.task.autoencoder.latent_channels=8
  --config.task.bottleneck_weight=1e-6

It has few steps, so that many variants can be compared; see
benchmarks/claims.py.
"""

import dataclasses

import glyphs_autoencoder

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy

STEPS = 600


def get_config(bottleneck_weight=1e-6):
  made = glyphs_autoencoder.get_config()
  task = dataclasses.replace(
    made.task,
    autoencoder=made.task.autoencoder.clone(latent_channels=4),
    optimizer=dataclasses.replace(made.task.optimizer, decay_steps=STEPS),
    bottleneck_weight=bottleneck_weight,
  )
  data = dataclasses.replace(
    made.data,
    source=Glyphs(level=0, split="train", detail=2),
    validation=Glyphs(level=0, split="validation", size=512, detail=2),
    batch=8,
  )
  return dataclasses.replace(
    made,
    task=task,
    data=data,
    steps=STEPS,
    checkpoints=CheckpointPolicy(every=STEPS),
  )
