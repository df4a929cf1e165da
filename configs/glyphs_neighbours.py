"""Images of the built-in glyphs like four others  (Blattmann et al. 2022).

The four nearest of 16,384 by the first stage's latents; search for them first:

  python -m ldm_jax.cli.retrieve --config=configs/glyphs_neighbours.py \\
    --encoder=runs/glyphs_autoencoder --out=runs/neighbours
"""

import dataclasses

from glyphs_base import second_stage

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.nn.conditioners.spatial import NeighbourEmbeddings

FOLDER = "runs/neighbours"


def get_config():
  made = second_stage(NeighbourEmbeddings(width=512))
  data = dataclasses.replace(
    made.data,
    source=Neighbours(Glyphs(split="train", size=16_384), FOLDER),
    validation=Neighbours(
      Glyphs(split="validation", size=1024), FOLDER, "validation"
    ),
  )
  return dataclasses.replace(made, data=data)
