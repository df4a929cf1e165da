"""Class to image on the built-in glyphs: 48 classes, shape times colour.

The class embedding is a token for cross-attention (LDM's ClassEmbedder) and is
also added to the time embedding.
"""

from glyphs_base import second_stage

from ldm_jax.nn.conditioners.embedders import ClassEmbedder


def get_config():
  return second_stage(
    ClassEmbedder(classes=48, width=128, joins="both"), vector="mlp"
  )
