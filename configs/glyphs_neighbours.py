"""Retrieval-augmented diffusion on the built-in glyphs (Blattmann et al. 2022).

Conditioned on the four nearest of 16,384 images, compared by the first stage's
latents. Find them first:

  ldm-jax retrieve --config=glyphs_neighbours \\
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
