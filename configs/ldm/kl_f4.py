"""First stage kl-f4: 256 x 256 x 3 to 64 x 64 x 3.

rFID on ImageNet's validation images, PSNR: 0.27, 27.5 dB (published).
55.3 M parameters.
"""

from base import first_stage, kl


def get_config():
  return first_stage(
    kl((1, 2, 4), 3), batch=10, steps=176_991, disc_start=50_001
  )
