"""Class to image at 64 x 64 on the latents of a first stage of any f.

All values of f, and pixels (claims_pixels.py), are trained by the same
hyper-parameters. As in LDM's comparison (figures 6 and 7), U-Nets for a
smaller f have more levels, so that all of them have attention at 8 x 8 and
below. For f = 2:

  --config.task.model.unet.multipliers="(1, 1, 2)"
  --config.task.model.unet.attention.depths="(0, 0, 1)"
"""

import dataclasses

from glyphs_base import second_stage

from ldm_jax.config import Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy


def get_config(first_stage=None, channels=4):
  embedder = ClassEmbedder(classes=48, width=128, joins="both")
  made = second_stage(embedder, vector="mlp", steps=100)
  model = dataclasses.replace(
    made.task.model,
    first_stage=first_stage,
    # Half the width of glyphs_base, so that pixels get enough steps too.
    unet=made.task.model.unet.clone(out_channels=channels, channels=24),
  )
  # A constant rate, so that a run can be evaluated wherever it is stopped.
  optimizer = dataclasses.replace(
    made.task.optimizer, decay="constant", decay_steps=0
  )
  data = dataclasses.replace(
    made.data,
    source=Glyphs(level=0, split="train", detail=2),
    validation=Glyphs(level=0, split="validation", size=512, detail=2),
    batch=32,
    held_out=64,
  )
  return dataclasses.replace(
    made,
    task=dataclasses.replace(made.task, model=model, optimizer=optimizer),
    data=data,
    checkpoints=CheckpointPolicy(every=100_000),
    reports=Reports(every=10, previews_every=0),
  )
