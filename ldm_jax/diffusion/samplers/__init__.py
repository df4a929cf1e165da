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
  CHUNK_ROWS,
  ReplaceKnown,
  Row,
  image_keys,
  init_registers,
  initial_noise,
  normal,
  run,
  sample,
  split_table,
)
from ldm_jax.diffusion.samplers.timesteps import TimestepSpacing, times

__all__ = [
  "CHUNK_ROWS",
  "SAMPLERS",
  "Plan",
  "ReplaceKnown",
  "Row",
  "SamplerConfig",
  "TimestepSpacing",
  "image_keys",
  "init_registers",
  "initial_noise",
  "normal",
  "run",
  "sample",
  "split_table",
  "times",
]
