"""Sixty-four bits by which an array is known again, on any mesh."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from ldm_jax.runtime.devices import processes

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


class Checksums(NamedTuple):
  """A tree told by its leaves.

  Attributes:
    leaves: by path, format, shape and digest, as one word.
    odd: paths of those that hold an infinity or what is not a number.
  """

  leaves: dict[str, str]
  non_finite: tuple[str, ...]


def checksums(tree: Any) -> Checksums:
  """The digests of all leaves, computed where they lie.

  A leaf's is two sums, modulo 2^32, of a mixture of every word of its bits with
  the word's place. Sums that wrap around do not depend on their order, so
  neither does the digest on the mesh; each mixture is one-to-one in the word,
  so an array with one changed word always has another digest.
  """
  paths, leaves = [], []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    paths.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    leaves.append(leaf)
  told = []
  for leaf in leaves:
    told.append(_told(leaf))
    if jax.default_backend() == "cpu":
      # Many programs that meet across devices would wait for each other's
      # threads.
      told[-1].block_until_ready()
  found, odd = {}, []
  for path, leaf, words in zip(paths, leaves, told, strict=True):
    first, second, is_finite = processes.gather(words).tolist()
    shape = ",".join(map(str, np.shape(leaf)))
    found[path] = f"{leaf.dtype.name}[{shape}]:{first:08x}{second:08x}"
    if not is_finite:
      odd.append(path)
  return Checksums(found, tuple(odd))


def checksum(tree: Any) -> str:
  """SHA-256 over every leaf's path, format, shape and digest, in hex."""
  return combined_checksum(checksums(tree).leaves)


def combined_checksum(leaves: Mapping[str, str]) -> str:
  """SHA-256, in hex, of what `digests` says of a tree's leaves."""
  lines = (f"{path} {word}\n" for path, word in sorted(leaves.items()))
  return hashlib.sha256("".join(lines).encode()).hexdigest()


@jax.jit
def _told(leaf: Array) -> UInt32[Array, "3"]:
  """Both sums, and whether all is finite."""
  is_finite = jnp.bool_(True)
  if jnp.issubdtype(leaf.dtype, jnp.inexact):
    is_finite = jnp.isfinite(leaf).all()
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(leaf, WORDS[leaf.dtype.itemsize])
  words = bits.astype(jnp.uint32)
  first = _mixed(words ^ _mixed(_places(words.shape)))
  second = _mixed(first ^ jnp.uint32(0x9E3779B9))
  sums = [jnp.sum(x, dtype=jnp.uint32) for x in (first, second)]
  return jnp.stack([*sums, is_finite.astype(jnp.uint32)])


def _places(shape: tuple[int, ...]) -> Array:
  """Every element's number in row-major order, modulo 2^32."""
  places, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    places += along * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  return places


def _mixed(x: Array) -> Array:
  """A one-to-one map of words in which every bit reaches every other.

  The constants are Wellons' "lowbias32" (public domain, 2018).
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
