"""claims_autoencoder.py with a vector-quantized bottleneck."""

import dataclasses

import claims_autoencoder

from ldm_jax.nn.bottleneck import VectorQuantizer


def get_config():
  made = claims_autoencoder.get_config(bottleneck_weight=1.0)
  task = dataclasses.replace(
    made.task,
    autoencoder=made.task.autoencoder.clone(bottleneck=VectorQuantizer(512, 4)),
    optimizer=dataclasses.replace(made.task.optimizer, clip=None),
    reduction="mean",
  )
  return dataclasses.replace(made, task=task)
