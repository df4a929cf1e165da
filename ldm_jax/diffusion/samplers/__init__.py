"""From x_T to x_0: grids of noise levels, samplers as tables, one scan.

`SamplerConfig` names a sampler with its timesteps; `SamplerConfig.plan` works
out its rows; `run` follows them.
"""

from ldm_jax.diffusion.samplers.sampler_config import (
  SAMPLERS,
  Plan,
  SamplerConfig,
)
from ldm_jax.diffusion.samplers.sampler_table import (
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
from ldm_jax.diffusion.samplers.timesteps import Spacing, times

__all__ = [
  "CHUNK",
  "SAMPLERS",
  "Mend",
  "Plan",
  "Row",
  "SamplerConfig",
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
