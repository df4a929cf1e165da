"""Images of the built-in glyphs that nobody asked for."""

from glyphs_base import second_stage


def get_config():
  return second_stage(kind="plain")
