"""Class to image on the built-in glyphs by a diffusion transformer.

As glyphs_class.py, with a DiT of 4.2 M parameters in place of the U-Net: 16
tokens of 2 x 2 latents, and the class added to the embedding of the time. RoPE,
RMS norms and SwiGLU reach a lower loss in the same time than the original's
positions, norms and MLP, and a transformer takes three times Muon's rate of a
U-Net; see benchmarks/quality.md.
"""

import dataclasses

from glyphs_base import second_stage

from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.dit.dit import DiT


def get_config():
  width = 192
  made = second_stage(ClassEmbedder(48, width, joins="vector", deviation=0.02))
  unet = DiT(
    8,
    width,
    depth=6,
    heads=6,
    patch=2,
    positions="rope",
    norm="rms",
    mlp="swiglu",
    is_qk_normed=True,
  )
  model = dataclasses.replace(made.task.model, unet=unet)
  optimizer = dataclasses.replace(made.task.optimizer, muon=1.5e-2)
  task = dataclasses.replace(made.task, model=model, optimizer=optimizer)
  return dataclasses.replace(made, task=task)
