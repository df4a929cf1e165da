"""First stage kl-f8: 256 x 256 x 3 to 32 x 32 x 4, as in Stable Diffusion.

rFID on ImageNet's validation images, PSNR: 0.90, 24.2 dB (published).
83.7 M parameters.
"""

from base import first_stage, kl


def get_config():
  return first_stage(
    kl((1, 2, 4, 4), 4), batch=4, steps=246_803, disc_start=50_001
  )
