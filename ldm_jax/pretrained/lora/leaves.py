"""Leaves of nested dictionaries of parameters: read, and replaced."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.errors import NonFiniteWeights
from ldm_jax.nn.operators.quantized_array import is_quantized
from ldm_jax.pretrained.quantizer import requantized


def get_leaf(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
  """The leaf at a path of a nested dictionary."""
  for name in path:
    tree = tree[name]
  return tree


def with_leaf(tree: Mapping[str, Any], path: Sequence[str], leaf: Any) -> Any:
  """The tree with another leaf at a path; the rest is shared."""
  name, *rest = path
  return {**tree, name: with_leaf(tree[name], rest, leaf) if rest else leaf}


def like_leaf(array: np.ndarray, leaf: Any, name: str) -> Any:
  """The array in the number format and with the sharding of a leaf.

  Raises:
    NonFiniteWeights: it is too large for that format; `name` is in the message.
  """
  if is_quantized(leaf):
    return requantized(array, leaf)
  largest = np.abs(array).max(initial=0)
  with np.errstate(over="ignore"):
    is_finite = np.isfinite(largest.astype(leaf.dtype))
    array = array.astype(leaf.dtype)
  if not is_finite:
    raise NonFiniteWeights(
      f"{name} reaches {largest:g}, too large for {leaf.dtype}; try a smaller "
      "scale, or dtype float32"
    )
  if not isinstance(leaf, jax.Array):
    return array
  # An uncommitted array may still be used with any mesh.
  if not leaf.committed:
    return jnp.asarray(array)
  if leaf.sharding.is_fully_addressable:
    return jax.device_put(array, leaf.sharding)
  # Without a comparison between the processes.
  part = lambda index: array[index]
  return jax.make_array_from_callback(array.shape, leaf.sharding, part)
