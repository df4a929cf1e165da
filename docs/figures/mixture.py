"""A mixture of Gaussians in the plane: its denoiser in closed form.

With x_t = signal x0 + sigma eps and x0 of N(mean_i, std^2), x_t is a mixture
again, and the expected noise is a weighted sum of those of its components.
"""

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.prediction import Estimate

ANGLES = jnp.arange(8) * jnp.pi / 4
MEANS = jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=-1) * 0.9
STD = 0.12


def expected_noise(xt, level, means):
  """E[eps | x_t], [b 2]."""
  variance = level.signal**2 * STD**2 + level.sigma**2
  offsets = xt[:, None] - level.signal * means  # [b k 2]
  logits = -(offsets**2).sum(-1) / (2 * variance)
  weights = jax.nn.softmax(logits, axis=-1)
  return level.sigma / variance * (weights[..., None] * offsets).sum(1)


def estimate(xt, level, eps):
  """x0 and eps from eps."""
  return Estimate((xt - level.sigma * eps) / level.signal, eps)


def denoiser(means=MEANS):
  """The perfect denoiser of the mixture."""
  return lambda xt, level: estimate(xt, level, expected_noise(xt, level, means))
