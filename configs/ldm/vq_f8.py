"""First stage vq-f8: 32 x 32 of 16,384 codes.

rFID on ImageNet's validation images, PSNR: 1.14, 23.1 dB (published).
67.7 M parameters.
"""

from base import first_stage, vq


def get_config():
  return first_stage(
    vq((1, 2, 2, 4), 4, 16_384, attention_levels=(3,)),
    batch=10,
    steps=971_043,
    disc_start=1,
    disc_weight=0.6,
    disc_layers=2,
  )
