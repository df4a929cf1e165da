"""Text to image on the built-in glyphs by a rectified flow.

The straight line from image to noise (Liu et al. 2023), its velocity learned
at all times as often. The logit-normal times of Esser et al. (2024) leave out
the noisiest, which alone learn from the words where so few latents tell so much.
"""

from glyphs_base import second_stage
from glyphs_text import words

from ldm_jax.diffusion.schedule import Schedule


def get_config():
  embedder, tokenizer = words()
  return second_stage(
    embedder,
    vector="mlp",
    tokenizer=tokenizer,
    prediction="flow",
    schedule=Schedule("rectified_flow"),
  )
