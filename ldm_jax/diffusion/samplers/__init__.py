"""From x_T to x_0: noise levels, samplers as tables, and one scan.

`SamplerConfig` names a sampler with its noise levels, `SamplerConfig.plan`
computes its table, and `run` follows it.
"""

from ldm_jax.diffusion.samplers.registry import (
  SAMPLERS,
  Sampler,
  SamplerSpec,
  register_sampler,
)
from ldm_jax.diffusion.samplers.sampler_config import Plan, SamplerConfig
from ldm_jax.diffusion.samplers.sampler_table import (
  CHUNK_ROWS,
  ReplaceKnown,
  Row,
  image_keys,
  init_registers,
  initial_noise,
  normal,
  row,
  run,
  run_row,
  sample,
  split_table,
  stack,
)
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels, TimestepSpacing

__all__ = [
  "CHUNK_ROWS",
  "SAMPLERS",
  "NoiseLevels",
  "Plan",
  "ReplaceKnown",
  "Row",
  "Sampler",
  "SamplerConfig",
  "SamplerSpec",
  "TimestepSpacing",
  "image_keys",
  "init_registers",
  "initial_noise",
  "normal",
  "register_sampler",
  "row",
  "run",
  "run_row",
  "sample",
  "split_table",
  "stack",
]
