"""Rotations of queries and keys by the position of their token."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

_BASE = 10_000.0


def _cos_sin(count: int, width: int) -> Float[Array, "2 count half"]:
  """cos and sin of p f_i, f_i = 10000^(-2 i / width); by float64."""
  frequencies = [_BASE ** (-2 * i / width) for i in range(width // 2)]
  table = [
    [[wave(p * f) for f in frequencies] for p in range(count)]
    for wave in (math.cos, math.sin)
  ]
  return jnp.asarray(table, jnp.float32).reshape(2, count, width // 2)


def rotary_cos_sin(
  length: int, grid: tuple[int, int], axes: tuple[int, ...]
) -> Float[Array, "2 l half"]:
  """cos and sin of the angles of every token, those of the text first.

  A token has three coordinates (k, y, x), each of which rotates `axes`
  features of a head. The text's are 0, those of the patch in row y and column x
  are (0, y, x).

  Args:
    length: tokens of text.
    grid: rows and columns of patches.
    axes: even numbers of features.
  """
  first, *others = axes
  shape = 2, *grid
  still = _cos_sin(1, first)[:, :, None]
  rows, columns = map(_cos_sin, grid, others)
  parts = still, rows[:, :, None], columns[:, None]
  parts = [jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
  patches = jnp.concatenate(parts, -1).reshape(2, math.prod(grid), -1)
  text = jnp.broadcast_to(
    jnp.array([1.0, 0.0])[:, None, None], (2, length, patches.shape[-1])
  )
  return jnp.concatenate([text, patches], axis=1)


def rotate_pairs(
  x: Float[Array, "b l n d"], cos_sin: Float[Array, "2 l half"]
) -> Float[Array, "b l n d"]:
  """Features 2 i and 2 i + 1 as a plane, turned (Su et al. 2021, eq. 34).

  In float32.
  """
  cos, sin = cos_sin[:, :, None]
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  turned = [even * cos - odd * sin, odd * cos + even * sin]
  return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)
