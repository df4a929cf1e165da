"""A batch of images before its first step."""

from typing import NamedTuple

from ldm_jax.diffusion import samplers
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.sampling.initial_latents import InitialState
from ldm_jax.sampling.sampling_config import ImageInputs
from ldm_jax.sampling.steps.denoising_steps import StepInputs


class BegunBatch(NamedTuple):
  """A batch before its first step.

  Attributes:
    params: of the model.
    images: that it is made from.
    table: the rows that all its images follow.
    start: registers, keys and what else the start has.
    schedule: what the steps take, each until a fraction of the table.
  """

  params: Parameters
  images: ImageInputs
  table: samplers.Row
  start: InitialState
  schedule: tuple[tuple[float, StepInputs], ...]
