"""First stage vq-f4: 64 x 64 of 8,192 codes.

rFID on ImageNet's validation images, PSNR: 0.58, 27.4 dB (published).
55.3 M parameters.
"""

from base import first_stage, vq


def get_config():
  return first_stage(
    vq((1, 2, 4), 3, 8192),
    batch=8,
    steps=533_066,
    disc_start=0,
    disc_weight=0.75,
  )
