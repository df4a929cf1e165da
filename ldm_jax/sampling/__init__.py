"""How images are made: an order and conditions in, pictures out."""

from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.sampling_config import (
  Conditioning,
  GenerationInputs,
  ImageInputs,
  SamplingConfig,
)

__all__ = [
  "Conditioning",
  "GenerationInputs",
  "ImageInputs",
  "SamplingConfig",
  "SamplingEngine",
]
