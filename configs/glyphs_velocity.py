"""Text to image on the built-in glyphs, on LDM's schedule.

Predicts v (Salimans and Ho 2022), as Stable Diffusion 2 does, instead of a
flow's velocity.
"""

from glyphs_base import LDM, second_stage
from glyphs_text import text_conditioning


def get_config():
  embedder, tokenizer = text_conditioning()
  return second_stage(
    embedder,
    vector="mlp",
    tokenizer=tokenizer,
    prediction="v",
    schedule=LDM,
  )
