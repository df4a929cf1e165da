"""Text to image on the built-in glyphs, on LDM's schedule.

The velocity is predicted, as in Stable Diffusion 2, in place of a flow's.
"""

from glyphs_base import LDM, second_stage
from glyphs_text import words


def get_config():
  embedder, tokenizer = words()
  return second_stage(
    embedder,
    vector="mlp",
    tokenizer=tokenizer,
    prediction="v",
    schedule=LDM,
  )
