"""Layout to image on the built-in glyphs: a class and two corners per object.

LDM's layout tokens on a 33 x 33 grid, one position per pixel edge.
"""

from glyphs_base import second_stage

from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.nn.conditioners.embedders import LayoutEmbedder
from ldm_jax.nn.encoders.text_encoder import TextEncoder

TOKENS = LayoutTokens(vocabulary=1100, objects=1)


def get_config():
  encoder = TextEncoder(
    vocabulary=TOKENS.vocabulary,
    width=128,
    depth=1,
    heads=4,
    head_width=32,
    length=TOKENS.length,
  )
  return second_stage(
    LayoutEmbedder(encoder, drop_rate=0.1), transforms=(TOKENS,)
  )
