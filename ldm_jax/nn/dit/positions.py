"""Positions of patches in two dimensions: added, or as rotations."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

_BASE = 10_000.0


def axis_positions(count: int, base: int | None) -> list[float]:
  """Positions of the `count` patches along one axis.

  Args:
    base: they are spread over 0 to `base`, as if the grid were resampled; None
      counts patches whatever the size.
  """
  step = 1.0 if base is None else base / count
  return [i * step for i in range(count)]


def _angles(count: int, width: int, base: int | None) -> list[list[float]]:
  """[count][width]: position times f_i = 10000^(-i / width), float64."""
  frequencies = [_BASE ** (-i / width) for i in range(width)]
  return [[p * f for f in frequencies] for p in axis_positions(count, base)]


def _join_axes(
  rows: Float[Array, "h d"], columns: Float[Array, "w e"]
) -> tuple[Float[Array, "l d"], Float[Array, "l e"]]:
  """Every patch's row and column, row by row."""
  shape = len(rows), len(columns)
  of_rows = jnp.broadcast_to(rows[:, None], (*shape, rows.shape[-1]))
  of_columns = jnp.broadcast_to(columns[None], (*shape, columns.shape[-1]))
  count = shape[0] * shape[1]
  return of_rows.reshape(count, -1), of_columns.reshape(count, -1)


def sincos_positions(
  grid: tuple[int, int], width: int, base: int | None
) -> Float[Array, "l width"]:
  """[sin x f | cos x f | sin y f | cos y f] of every patch, row by row.

  x is the column, y the row and f_i = 10000^(-i / (width / 4)) (Vaswani et al.
  2017, section 3.5, over two axes, as in MAE and DiT). Computed in float64.

  Args:
    grid: rows and columns of patches.
    base: see `axis_positions`.
  """
  rows, columns = (
    jnp.asarray(
      [
        [wave(a) for wave in (math.sin, math.cos) for a in angles]
        for angles in _angles(count, width // 4, base)
      ],
      jnp.float32,
    )
    for count in grid
  )
  of_rows, of_columns = _join_axes(rows, columns)
  return jnp.concatenate([of_columns, of_rows], axis=-1)


def rotary_angles(
  grid: tuple[int, int], head_width: int, base: int | None, registers: int
) -> Float[Array, "l half"]:
  """[y f | x f]; 0 for the registers, which come first.

  f_i = 10000^(-i / (head_width / 4)): half of the pairs of a head's features
  turn with the row y, half with the column x.
  """
  quarter = head_width // 4
  rows, columns = (
    jnp.asarray(_angles(count, quarter, base), jnp.float32) for count in grid
  )
  none = jnp.zeros((registers, 2 * quarter))
  found = jnp.concatenate(_join_axes(rows, columns), axis=-1)
  return jnp.concatenate([none, found])


def rotate(
  x: Float[Array, "b l n d"], angles: Float[Array, "l e"]
) -> Float[Array, "b l n d"]:
  """Features i and i + d / 2 as a plane, turned (Su et al. 2021, eq. 34).

  In float32; scores of two rotated tokens depend on the difference of their
  positions alone.
  """
  cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
