"""First stage kl-f16: 256 x 256 x 3 to 16 x 16 x 16.

rFID on ImageNet's validation images, PSNR: 0.87, 24.1 dB (published).
69.6 M parameters.
"""

from base import first_stage, kl


def get_config():
  return first_stage(
    kl((1, 1, 2, 2, 4), 16, attention_levels=(4,)),
    batch=6,
    steps=442_998,
    disc_start=50_001,
  )
