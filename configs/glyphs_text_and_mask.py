"""Text-guided inpainting on the built-in glyphs: a prompt and a mask."""

from glyphs_base import second_stage
from glyphs_text import text_conditioning

from ldm_jax.data.transforms.masks import Masks
from ldm_jax.nn.conditioners.spatial import MaskedImage


def get_config():
  embedder, tokenizer = text_conditioning()
  return second_stage(
    embedder,
    MaskedImage("sd"),
    vector="mlp",
    tokenizer=tokenizer,
    transforms=(Masks(),),
  )
