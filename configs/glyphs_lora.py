"""Fine-tunes the text model to another palette by LoRA of rank 16.

Start from a run of glyphs_text: --config.start=runs/glyphs_text.
"""

import dataclasses

from glyphs_finetune import get_config as finetune

from ldm_jax.nn.lora import LoRA


def get_config():
  made = finetune()
  task = dataclasses.replace(
    made.task,
    lora=LoRA(16, 16.0, r"^unet/.*kernel$"),
    optimizer=dataclasses.replace(made.task.optimizer, rate=2e-3),
  )
  return dataclasses.replace(made, task=task)
