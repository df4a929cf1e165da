"""Class to image on the built-in glyphs: 48 classes, shape times colour.

Told as a token to attend to (LDM's ClassEmbedder) and beside the time.
"""

from glyphs_base import second_stage

from ldm_jax.nn.conditioners.embedders import ClassEmbedder


def get_config():
  return second_stage(
    ClassEmbedder(classes=48, width=128, joins="both"), vector="mlp"
  )
