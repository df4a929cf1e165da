"""64-bit checksums of arrays that do not depend on the mesh."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from ldm_jax.runtime.checkpointing import host_sums
from ldm_jax.runtime.devices import processes

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


class Checksums(NamedTuple):
  """The checksums of a tree.

  Attributes:
    leaves: path -> "dtype[shape]:checksum", the checksum in hex.
    non_finite: paths of the leaves that hold NaN or infinity.
  """

  leaves: dict[str, str]
  non_finite: tuple[str, ...]


def checksums(tree: Any) -> Checksums:
  """The checksums of all leaves, computed where they are.

  A leaf's checksum is two sums, modulo 2^32, of hashes of each element's bits
  and its position. Wrapping sums do not depend on their order, so the checksum
  does not depend on the mesh; each hash is one-to-one in the bits, so an array
  with one changed element always has another checksum. Accelerators compile a
  program for each shape; on CPUs numpy computes the same sums.
  """
  paths, leaves = leaf_paths(tree), jax.tree.leaves(tree)
  if jax.default_backend() == "cpu":
    local = [host_sums.sums(leaf) for leaf in leaves]
    sums = processes.sum_over(local) if local else []
  else:
    sums = [processes.gather(x) for x in [_sums(leaf) for leaf in leaves]]
  found, non_finite = {}, []
  for path, leaf, values in zip(paths, leaves, sums, strict=True):
    first, second, bad = map(int, values)
    shape = ",".join(map(str, np.shape(leaf)))
    found[path] = f"{leaf.dtype.name}[{shape}]:{first:08x}{second:08x}"
    if bad:
      non_finite.append(path)
  return Checksums(found, tuple(non_finite))


def leaf_paths(tree: Any) -> list[str]:
  """The path of every leaf, as `Checksums` has it."""
  found = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return [name(path) for path, _ in found]


def checksum(tree: Any) -> str:
  """SHA-256, in hex, over every leaf's path, dtype, shape and checksum."""
  return combined_checksum(checksums(tree).leaves)


def combined_checksum(leaves: Mapping[str, str]) -> str:
  """SHA-256, in hex, of `Checksums.leaves`."""
  lines = (f"{path} {value}\n" for path, value in sorted(leaves.items()))
  return hashlib.sha256("".join(lines).encode()).hexdigest()


@jax.jit
def _sums(leaf: Array) -> UInt32[Array, "3"]:
  """Both sums, and 1 if an element is not finite."""
  bad = jnp.bool_(False)
  if jnp.issubdtype(leaf.dtype, jnp.inexact):
    bad = ~jnp.isfinite(leaf).all()
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(leaf, UNSIGNED[leaf.dtype.itemsize])
  values = bits.astype(jnp.uint32)
  first = _hash(values ^ _hash(_positions(values.shape)))
  second = _hash(first ^ jnp.uint32(0x9E3779B9))
  sums = [jnp.sum(x, dtype=jnp.uint32) for x in (first, second)]
  return jnp.stack([*sums, bad.astype(jnp.uint32)])


def _positions(shape: tuple[int, ...]) -> Array:
  """Every element's index in row-major order, modulo 2^32."""
  positions, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    positions += along * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  return positions


def _hash(x: Array) -> Array:
  """Wellons' "lowbias32" (public domain, 2018), one-to-one on 32 bits."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
