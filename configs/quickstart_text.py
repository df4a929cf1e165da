"""The second stage of `make quickstart`: glyphs_text.py in fewer steps."""

import dataclasses

from glyphs_text import get_config as glyphs

STEPS = 600


def get_config():
  made = glyphs()
  optimizer = dataclasses.replace(made.task.optimizer, decay_steps=STEPS)
  return dataclasses.replace(
    made,
    task=dataclasses.replace(made.task, optimizer=optimizer),
    steps=STEPS,
    checkpoints=dataclasses.replace(made.checkpoints, every=STEPS),
  )
