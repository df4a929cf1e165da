"""Class to image at 64 x 64 on pixels: the baseline of the latent models."""

import claims_latents

from ldm_jax.nn.autoencoder import PixelSpace


def get_config():
  return claims_latents.get_config(PixelSpace(), channels=3)
