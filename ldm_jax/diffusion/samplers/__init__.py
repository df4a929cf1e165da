"""From x_T to x_0: grids of noise levels, samplers as tables, one scan.

`Recipe` names a sampler with its grid; `Recipe.plan` works out its rows; `run`
follows them.
"""

from ldm_jax.diffusion.samplers.grids import Spacing, times
from ldm_jax.diffusion.samplers.program import (
  CHUNK,
  Mend,
  Row,
  begin,
  chunks,
  image_keys,
  initial_noise,
  normal,
  run,
  sample,
)
from ldm_jax.diffusion.samplers.recipe import SAMPLERS, Plan, Recipe

__all__ = [
  "CHUNK",
  "SAMPLERS",
  "Mend",
  "Plan",
  "Recipe",
  "Row",
  "Spacing",
  "begin",
  "chunks",
  "image_keys",
  "initial_noise",
  "normal",
  "run",
  "sample",
  "times",
]
