"""One estimate from two."""

import jax
from jaxtyping import Array, Float

from ldm_jax.diffusion.prediction import Estimate


def guide(
  negative: Estimate, positive: Estimate, scale: Float[Array, ""] | float
) -> Estimate:
  """negative + scale (positive - negative)  (Ho and Salimans 2022, eq. 6).

  The paper's w is scale - 1: scale 1 is the conditional model itself, 0 the
  unconditional one. Applied to x0 and eps alike, which keeps
  x_t = signal x0 + sigma eps true.
  """
  return jax.tree.map(lambda n, p: n + scale * (p - n), negative, positive)
