"""First stage f16 of 16 channels: 256 x 256 x 3 to 16 x 16 x 16.

LDM's kl-f16 with VA-VAE's learning rate and epochs: what alignment is compared
with there; see vavae_f16c32.py. configs/ldm/kl_f16.py has LDM's own training,
the published one. 69.6 M parameters.
"""

from base import f16


def get_config():
  return f16(16)
