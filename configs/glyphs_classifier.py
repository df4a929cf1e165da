"""A classifier of the built-in glyphs' noisy latents, to guide others by.

Half a U-Net (Dhariwal and Nichol 2021); 48 classes, shape times colour.
"""

import dataclasses

from glyphs_base import LDM, second_stage

from ldm_jax.nn.classifier import HalfUNet
from ldm_jax.nn.unet import AttentionPlan
from ldm_jax.tasks.classifying import Classifying

STEPS = 700


def get_config():
  made = second_stage(kind="plain", steps=STEPS)
  return dataclasses.replace(
    made,
    task=Classifying(
      classifier=HalfUNet(
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
