"""Text to image on the built-in glyphs by a transformer over both.

As glyphs_text.py, with an MMDiT of 3.7 M parameters in place of the U-Net: 16
tokens of 2 x 2 latents and 20 tokens of text attend to each other (Esser et al.
2024). Times are of their logit-normal density; Muon's rate is that of
glyphs_dit.py.
"""

import dataclasses

from glyphs_base import second_stage
from glyphs_text import text_conditioning

from ldm_jax.nn.mmdit.mmdit import MMDiT


def get_config():
  embedder, tokenizer = text_conditioning()
  made = second_stage(embedder, tokenizer=tokenizer)
  unet = MMDiT(8, 128, depth=6, heads=4, is_qk_normed=True, max_size=4, grid=4)
  task = dataclasses.replace(
    made.task,
    model=dataclasses.replace(made.task.model, unet=unet),
    loss=dataclasses.replace(made.task.loss, density="logit_normal"),
    optimizer=dataclasses.replace(made.task.optimizer, muon=1.5e-2),
  )
  return dataclasses.replace(made, task=task)
