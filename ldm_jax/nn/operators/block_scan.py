"""A stack of equal blocks as one scan, which compiles once for all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def scan_blocks(
  block: Callable[[Any, Any], Any], params: Sequence[Any], h: Any
) -> Any:
  """h = block(p, h) for the parameters p of each block in turn.

  They are stacked inside the program, so they are stored and named as without
  a scan.

  Args:
    block: (parameters, h) -> h, h being an array or a tree of arrays.
    params: of each block, trees of one structure.
  """
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  return jax.lax.scan(lambda h, p: (block(p, h), None), h, stacked)[0]
