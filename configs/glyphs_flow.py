"""Text to image on the built-in glyphs by a rectified flow.

The straight line from image to noise (Liu et al. 2023), its velocity learned
at times around the middle more often (Esser et al. 2024).
"""

import dataclasses

from glyphs_base import second_stage
from glyphs_text import words

from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule


def get_config():
  embedder, tokenizer = words()
  made = second_stage(
    embedder,
    vector="mlp",
    tokenizer=tokenizer,
    prediction="flow",
    schedule=Schedule("rectified_flow"),
  )
  loss = DenoisingLoss("flow", density="logit_normal")
  return dataclasses.replace(
    made, task=dataclasses.replace(made.task, loss=loss)
  )
