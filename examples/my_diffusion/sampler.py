"""A sampler: DDIM whose noise fades out as the image becomes clear."""

from collections.abc import Iterator

import numpy as np

from ldm_jax.diffusion.samplers.ddim_and_ddpm import posterior_std
from ldm_jax.diffusion.samplers.sampler_table import EPS, NOISE, X0, Row, row
from ldm_jax.diffusion.samplers.timesteps import NoiseLevels


def fading_ddim(noise_levels: NoiseLevels, eta: float = 1.0) -> Iterator[Row]:
  """DDIM (Song et al. 2021, eq. 12) with eta scaled by each level's sigma.

  Ancestral sampling at high noise levels, where it corrects errors, and
  deterministic at low ones, where it would leave noise in the image.
  """
  for s, t in noise_levels.steps():
    std = min(eta * s.sigma * posterior_std(s, t), t.sigma)
    rest = np.sqrt(t.sigma**2 - std**2)
    yield row(s, t, x=t.signal * X0 + rest * EPS + std * NOISE)
