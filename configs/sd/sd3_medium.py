"""Stable Diffusion 3 medium, 256 x 256  (Esser et al. 2024).

The first of two stages: 500,000 steps with batches of 4,096 at 256 x 256, then
many aspects at 1024 x 1024, with times shifted by 3. FID is not reported for
this size. 2,028.3 M parameters, and 0.3 M numbers of fixed positions.
"""

from base import multimodal

from ldm_jax.nn.mmdit.mmdit import MMDiT


def get_config():
  return multimodal(MMDiT(), 256, batch=4096)
