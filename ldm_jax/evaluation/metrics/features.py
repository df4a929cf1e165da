"""Inception's features of any number of pictures, on all devices."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from ldm_jax.evaluation.metrics.resizing import World, resized
from ldm_jax.nn.encoders.inception import IMAGE_SIZE, Features, Inception
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding

Images = UInt8[np.ndarray, "_ _ _ 3"]  # each block of its own size


class Extractor:
  """Pictures to features, a batch at a time.

  Args:
    variables: of `Inception`.
    world: how pictures are brought to its size.
    batch: rounded up to a multiple of the devices.
  """

  def __init__(
    self,
    variables: Any,
    sharding: Sharding,
    world: World = "legacy",
    batch: int = 64,
  ):
    self._sharding = sharding
    self._variables = jax.device_put(variables, sharding.replicated)
    self.batch = -(-batch // sharding.batch_shards) * sharding.batch_shards

    @jax.jit
    def features(variables: Any, images: jax.Array) -> Features:
      levels = resized(images, IMAGE_SIZE, world)
      return Inception().apply(variables, (levels - 128) / 128)

    self._features = features

  def __call__(self, blocks: Iterable[Images]) -> Features:
    """Features of all pictures of all blocks, in their order, on the host.

    Pictures of one block have one size; each size compiles once.

    Raises:
      ValueError: there is no picture.
    """
    found = [
      self._of(block[begin : begin + self.batch])
      for block in blocks
      for begin in range(0, len(block), self.batch)
    ]
    if not found:
      raise ValueError("no pictures to take features of")
    return Features(*map(np.concatenate, zip(*found, strict=True)))

  def _of(self, images: Images) -> Features:
    """Of one batch, filled up to its size by its last picture."""
    count = len(images)
    last = np.repeat(images[-1:], self.batch - count, axis=0)
    whole = self._sharding.distribute({"image": np.concatenate([images, last])})
    told = self._features(self._variables, whole["image"])
    return jax.tree.map(lambda rows: processes.gather(rows)[:count], told)
