"""Text to image on the built-in glyphs, with a small text encoder.

A transformer, trained jointly with the U-Net, which receives its tokens by
cross-attention and their mean added to the time embedding.
"""

from glyphs_base import second_stage

from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.encoders.text_encoder import TextEncoder

LENGTH = 20


def text_conditioning():
  """The conditioner of the text encoder, and its tokenizer."""
  encoder = TextEncoder(
    vocabulary=128, width=128, depth=1, heads=4, head_width=32, length=LENGTH
  )
  embedder = TextEmbedder(encoder, is_pooled=True)
  return embedder, TokenizerConfig(kind="word", vocabulary=128, length=LENGTH)


def get_config():
  embedder, tokenizer = text_conditioning()
  return second_stage(embedder, vector="mlp", tokenizer=tokenizer)
