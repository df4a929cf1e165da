"""First stage vq-f4 without attention, for images of any size.

rFID on ImageNet's validation images, PSNR: 1.06, 25.2 dB (published).
53.2 M parameters.
"""

from base import first_stage, vq


def get_config():
  return first_stage(
    vq((1, 2, 4), 3, 8192, has_mid_attention=False),
    batch=8,
    steps=658_131,
    disc_start=11,
    disc_weight=0.75,
  )
