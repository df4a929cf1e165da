"""Fine-tunes the text model to another palette, all parameters trained.

Start from a run of glyphs_text: --config.start=runs/glyphs_text. A fraction of
its steps at a fraction of its learning rate.
"""

import dataclasses

from glyphs_text import get_config as text

from ldm_jax.data.glyphs.source import Glyphs

STEPS = 200


def get_config():
  made = text()
  task = dataclasses.replace(
    made.task,
    optimizer=dataclasses.replace(
      made.task.optimizer, rate=3e-4, muon=1e-3, decay_steps=STEPS
    ),
  )
  data = dataclasses.replace(
    made.data,
    source=Glyphs(palette="soft"),
    validation=Glyphs(split="validation", size=1024, palette="soft"),
  )
  return dataclasses.replace(
    made,
    task=task,
    data=data,
    steps=STEPS,
    checkpoints=dataclasses.replace(made.checkpoints, every=STEPS),
  )
