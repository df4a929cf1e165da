"""Retrieval-augmented diffusion, 768 x 768  (Blattmann et al. 2022).

Conditioned on CLIP embeddings of neighbours in a database; no figure was
published for this release. 1,335.5 M parameters. Find the neighbours first,
with `ldm-jax retrieve` and CLIP's ViT-L/14 as --encoder.
"""

import dataclasses

from base import cross_attention, folders, second_stage

from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.nn.conditioners.spatial import NeighbourEmbeddings
from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(
    16, 448, (1, 2, 3, 4), 2, cross_attention((1, 1, 1, 0), head_width=32)
  )
  data = folders("laion2b_en", 768)
  with_neighbours = lambda source, part: Neighbours(
    source, "runs/neighbours", part, 20
  )
  return second_stage(
    unet,
    dataclasses.replace(
      data,
      source=with_neighbours(data.source, "train"),
      validation=with_neighbours(data.validation, "validation"),
    ),
    stage="kl_f16",
    batch=1024,
    rate=1e-4,
    steps=1_000_000,
    schedule=Schedule(start=0.0015, end=0.015),
    conditioners=(NeighbourEmbeddings(768),),
    latent_scale=0.22765929,
  )
