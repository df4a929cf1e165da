"""First stage vq-f8 of 256 codes.

rFID on ImageNet's validation images, PSNR: 1.49, 22.4 dB (published).
67.7 M parameters.
"""

from base import first_stage, vq


def get_config():
  return first_stage(
    vq((1, 2, 2, 4), 4, 256, attention_levels=(3,)),
    batch=10,
    steps=1_608_649,
    disc_start=250_001,
    disc_weight=0.75,
  )
