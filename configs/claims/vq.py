"""The same first stage with a vector quantiser in its bottleneck."""

import autoencoder

from ldm_jax.nn.bottleneck import VectorQuantizer


def get_config():
  return autoencoder.get_config(VectorQuantizer(512, 4), 1.0, "mean", None)
