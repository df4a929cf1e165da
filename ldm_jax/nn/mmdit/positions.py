"""Fixed positions of patches, of which an image takes the centre."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.dit.positions import sincos_positions


def axis_table(
  most: int, width: int, base: int | None
) -> Float[Array, "most width"]:
  """Row i has the features of column i, then those of row i.

  Together they are `sincos_positions` of most x most patches, in which one half
  depends on the column alone and the other on the row.

  Args:
    base: see `axis_positions`.
  """
  columns = sincos_positions((1, most), width, base)[:, : width // 2]
  rows = sincos_positions((most, 1), width, base)[:, width // 2 :]
  return jnp.concatenate([columns, rows], axis=-1)


def centre_positions(
  table: Float[Array, "most width"], grid: tuple[int, int]
) -> Float[Array, "l width"]:
  """Of the patches in the centre of the table's square, row by row.

  Esser et al. 2024, section 5.3.2: the grid of the largest size is cropped.

  Args:
    grid: rows and columns of patches.

  Raises:
    ValueError: it has more of them than the table.
  """
  most, width = table.shape
  if max(grid) > most:
    raise ValueError(
      f"{grid[0]} x {grid[1]} patches, but there are positions for {most} x "
      f"{most}; give latents of at most {most} patches per side"
    )
  first_row, first_column = ((most - count) // 2 for count in grid)
  half = width // 2
  columns = table[first_column : first_column + grid[1], :half]
  rows = table[first_row : first_row + grid[0], half:]
  of_columns = jnp.broadcast_to(columns[None], (*grid, half))
  of_rows = jnp.broadcast_to(rows[:, None], (*grid, width - half))
  return jnp.concatenate([of_columns, of_rows], axis=-1).reshape(-1, width)
