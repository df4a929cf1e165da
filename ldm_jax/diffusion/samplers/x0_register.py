"""A register more, in which a sampler's steps leave x0."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.diffusion.samplers.sampler_table import Row


def add_x0_register(
  state: Float[Array, "r b h w c"],
) -> Float[Array, "r2 b h w c"]:
  """The registers and one more, in which `keep_x0` leaves x0."""
  return jnp.concatenate([state, jnp.zeros_like(state[:1])])


def keep_x0(piece: Row) -> Row:
  """The piece for `add_x0_register`: each row also stores its x0.

  A row mixes the registers, x0, eps and noise linearly; see `Row`.
  """
  length, registers, basis = piece.mix.shape
  mix = np.zeros((length, registers + 1, basis + 1), piece.mix.dtype)
  mix[:, :-1, :registers] = piece.mix[:, :, :registers]
  mix[:, :-1, registers + 1 :] = piece.mix[:, :, registers:]
  mix[:, -1, registers + 1] = 1  # x0 comes first after the registers
  return piece._replace(mix=mix)
