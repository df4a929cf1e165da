"""The tables of images in slots, as numbers that are sent to the devices.

A row of each slot is sent for every step; one array is cheaper than nine.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from ldm_jax.diffusion.samplers import Row
from ldm_jax.diffusion.schedule import Level


class PackedRows(NamedTuple):
  """Rows of tables; axis 0 is the row of a table, or the slot.

  Attributes:
    numbers: of both levels and the mix, [n m].
    index: of the rows in their tables, [n].
  """

  numbers: Any
  index: Any

  @classmethod
  def of(cls, table: Row) -> "PackedRows":
    """A table; float64 becomes float32, which the devices have."""
    count = len(table.index)
    parts = (*table.level, *table.next_level, table.mix)
    flat = [np.asarray(part, np.float32).reshape(count, -1) for part in parts]
    return cls(np.concatenate(flat, axis=1), np.asarray(table.index, np.int32))

  def row(self, registers: int) -> Row:
    """The row whose numbers and index this is, without axis 0.

    Args:
      registers: of the sampler.
    """
    numbers: Float32[Array, " m"] = self.numbers
    index: Int32[Array, ""] = self.index
    first, second, mix = jnp.split(numbers, [3, 6])
    return Row(
      Level(*first),
      Level(*second),
      mix.reshape(registers, -1),
      index,
      jnp.bool_(True),
    )
