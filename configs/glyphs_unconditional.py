"""Images of the built-in glyphs that nobody asked for, or that a classifier
leads: on LDM's schedule, where a noisy latent still tells it something.
"""

from glyphs_base import LDM, second_stage


def get_config():
  return second_stage(kind="plain", prediction="v", schedule=LDM)
