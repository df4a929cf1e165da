"""Stable Diffusion 3.5 medium, 1024 x 1024, MMDiT with dual attention.

Its 13 first blocks have a second attention, of image tokens alone. The authors
published neither figures nor steps nor batches: they train at 256, 512, 768,
1024 and 1440, with random crops of the 384 x 384 positions. Here it is SD 3's
recipe at 1024 with a batch of 1,024. 2,243.2 M parameters, and 0.6 M numbers of
fixed positions.
"""

from base import multimodal

from ldm_jax.nn.mmdit.mmdit import MMDiT


def get_config():
  unet = MMDiT(dual_blocks=tuple(range(13)), is_qk_normed=True, max_size=384)
  return multimodal(unet, 1024, batch=1024, shift=3.0)
