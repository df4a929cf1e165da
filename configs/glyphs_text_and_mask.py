"""Text and a hole: words say what is to be drawn where the mask is true."""

from glyphs_base import second_stage
from glyphs_text import words

from ldm_jax.data.transforms.masks import Masks
from ldm_jax.nn.conditioners.spatial import MaskedImage


def get_config():
  embedder, tokenizer = words()
  return second_stage(
    embedder,
    MaskedImage("sd"),
    vector="mlp",
    tokenizer=tokenizer,
    transforms=(Masks(),),
  )
