"""An unconditional model of the built-in glyphs, also for classifier guidance.

On LDM's schedule, under which a classifier can still read noisy latents.
"""

from glyphs_base import LDM, second_stage


def get_config():
  return second_stage(kind="plain", prediction="v", schedule=LDM)
