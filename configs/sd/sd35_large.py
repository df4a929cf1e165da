"""Stable Diffusion 3.5 large, 1024 x 1024: an MMDiT of depth 38 with QK norm.

The authors published neither figures nor steps nor batches; here it is SD 3's
recipe at 1024 with a batch of 1,024. The largest network of its paper has the
same width and depth (Esser et al. 2024, section 5.3). 8,056.6 M parameters, and
0.5 M numbers of fixed positions.
"""

from base import multimodal

from ldm_jax.nn.mmdit.mmdit import MMDiT


def get_config():
  unet = MMDiT(width=2432, depth=38, heads=38, is_qk_normed=True)
  return multimodal(unet, 1024, batch=1024, shift=3.0)
