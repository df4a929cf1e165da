"""First stage f8 of 16 channels: 256 x 256 x 3 to 32 x 32 x 16.

The shape of SD 3's and of FLUX.1's autoencoder, without quant convolutions.
Their training has not been published: the losses, the learning rate and the
steps are those of LDM's kl-f8. 83,819,683 parameters, as the authors' have.
"""

from base import first_stage

from ldm_jax.nn.autoencoder import Autoencoder


def get_config():
  autoencoder = Autoencoder(
    latent_channels=16, has_quant_conv=False, has_post_quant_conv=False
  )
  return first_stage(
    autoencoder, rate=4 * 4.5e-6, batch=4, steps=246_803, disc_start=50_001
  )
