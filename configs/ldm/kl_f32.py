"""First stage kl-f32: 256 x 256 x 3 to 8 x 8 x 64.

rFID on ImageNet's validation images, PSNR: 2.04, 22.3 dB (published).
103.9 M parameters.
"""

from base import first_stage, kl


def get_config():
  return first_stage(
    kl((1, 1, 2, 2, 4, 4), 64, attention_levels=(4, 5)),
    batch=6,
    steps=406_763,
    disc_start=50_001,
  )
