"""Text to image on the built-in glyphs, told by a small transformer.

It is trained with the U-Net and told twice: as tokens to attend to, and as
their mean beside the time.
"""

from glyphs_base import second_stage

from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.encoders.text_encoder import TextEncoder

LENGTH = 20


def words():
  """The text encoder, and the tokenizer it listens to."""
  encoder = TextEncoder(
    vocabulary=128, width=128, depth=1, heads=4, head_width=32, length=LENGTH
  )
  embedder = TextEmbedder(encoder, is_pooled=True)
  return embedder, TokenizerConfig(kind="word", vocabulary=128, length=LENGTH)


def get_config():
  embedder, tokenizer = words()
  return second_stage(embedder, vector="mlp", tokenizer=tokenizer)
