"""A classifier of the built-in glyphs' noisy latents, for classifier guidance.

The encoder of a U-Net (Dhariwal and Nichol 2021); 48 classes, shape times
colour.
"""

import dataclasses

from glyphs_base import LDM, second_stage

from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.nn.unet import AttentionPlan
from ldm_jax.training.classifier import ClassifierTask

STEPS = 700


def get_config():
  made = second_stage(kind="plain", steps=STEPS)
  return dataclasses.replace(
    made,
    task=ClassifierTask(
      classifier=EncoderUNet(
        channels=48,
        multipliers=(1, 2),
        blocks=1,
        attention=AttentionPlan(depths=(1, 1), heads=4, kind="plain"),
        octaves=3,
        modulation="scale_shift",
        groups=12,
        classes=48,
      ),
      schedule=LDM,
      optimizer=made.task.optimizer,
      latents="mode",
      ema_decay=0.99,
    ),
  )
