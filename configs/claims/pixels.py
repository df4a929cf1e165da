"""Class to image at 64 x 64 on pixels: what latents are to be cheaper than."""

import latents

from ldm_jax.nn.autoencoder import Pixels


def get_config():
  return latents.get_config(Pixels(), channels=3)
