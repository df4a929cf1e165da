"""First stage vq-f16: 16 x 16 of 16,384 codes.

rFID on ImageNet's validation images, PSNR: 5.15, 20.8 dB (published).
69.6 M parameters.
"""

from base import first_stage, vq


def get_config():
  return first_stage(
    vq((1, 1, 2, 2, 4), 8, 16_384, attention_levels=(4,)),
    batch=14,
    steps=1_101_166,
    disc_start=250_001,
    disc_weight=0.75,
    disc_layers=2,
  )
