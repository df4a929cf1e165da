"""Sampling: requests, conditions and noise to images."""

from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.sampling_config import (
  Conditioning,
  GenerationInputs,
  ImageInputs,
  SamplingConfig,
)
from ldm_jax.sampling.steps.pieces import Progress

__all__ = [
  "Conditioning",
  "GenerationInputs",
  "ImageInputs",
  "Progress",
  "SamplingConfig",
  "SamplingEngine",
]
