"""Images of the built-in glyphs like four others  (Blattmann et al. 2022).

The four nearest of 16,384 by the first stage's latents; search for them first:

  python -m ldm_jax.commands.retrieve --config=configs/glyphs_neighbours.py \\
    --encoder=runs/glyphs_autoencoder --out=runs/neighbours
"""

import dataclasses

from glyphs_base import second_stage

from ldm_jax.data.glyphs import Glyphs
from ldm_jax.data.neighbours import Neighbours
from ldm_jax.nn.spatial import Embeddings

FOLDER = "runs/neighbours"


def get_config():
  made = second_stage(Embeddings(width=512))
  data = dataclasses.replace(
    made.data,
    source=Neighbours(Glyphs(split="train", size=16_384), FOLDER),
    validation=Neighbours(
      Glyphs(split="validation", size=1024), FOLDER, "validation"
    ),
  )
  return dataclasses.replace(made, data=data)
