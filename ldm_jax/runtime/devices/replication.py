"""Parameters that every device of a mesh holds."""

from typing import Any

import jax
import numpy as np

from ldm_jax.runtime.devices.sharding import Sharding


def replicate(tree: Any, sharding: Sharding) -> Any:
  """The tree with each of its arrays on every device of the mesh.

  What is read from a file is on one device. A program over a mesh would copy it
  to the others each time it is called.

  Args:
    tree: of arrays that are the same on every process. Those that are on the
      mesh's devices stay as they are, and so does a tree of such arrays.
  """
  devices = set(sharding.mesh.devices.flat)
  leaves, form = jax.tree.flatten(tree)
  moved = [
    i
    for i, leaf in enumerate(leaves)
    if isinstance(leaf, np.ndarray)
    or (isinstance(leaf, jax.Array) and leaf.sharding.device_set != devices)
  ]
  if not moved:
    return tree
  place = _place_local if sharding.replicated.is_fully_addressable else _place
  placed = place([leaves[i] for i in moved], sharding)
  for i, leaf in zip(moved, placed, strict=True):
    leaves[i] = leaf
  return jax.tree.unflatten(form, leaves)


def _place_local(arrays: list[Any], sharding: Sharding) -> list[jax.Array]:
  return jax.device_put(arrays, sharding.replicated)


def _place(arrays: list[Any], sharding: Sharding) -> list[jax.Array]:
  """On the devices of several processes, without a comparison between them."""
  return [
    jax.make_array_from_callback(
      array.shape, sharding.replicated, np.asarray(array).__getitem__
    )
    for array in arrays
  ]
