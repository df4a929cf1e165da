"""Inception's features of any number of images, on all devices."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from ldm_jax.evaluation.metrics.resizing import ResizeMode, resized
from ldm_jax.nn.encoders.inception import IMAGE_SIZE, Features, Inception
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding

Images = UInt8[np.ndarray, "_ _ _ 3"]  # each block of its own size


class Extractor:
  """Images to features, a batch at a time.

  Args:
    variables: of `Inception`.
    mode: how images are resized to 299 x 299.
    batch: rounded up to a multiple of the devices.
  """

  def __init__(
    self,
    variables: Any,
    sharding: Sharding,
    mode: ResizeMode = "legacy",
    batch: int = 64,
  ):
    self._sharding = sharding
    self._variables = jax.device_put(variables, sharding.replicated)
    self.batch = -(-batch // sharding.batch_shards) * sharding.batch_shards

    @jax.jit
    def features(variables: Any, images: jax.Array) -> Features:
      levels = resized(images, IMAGE_SIZE, mode)
      return Inception().apply(variables, (levels - 128) / 128)

    self._features = features

  def __call__(self, blocks: Iterable[Images]) -> Features:
    """Features of all images of all blocks, in their order, on the host.

    Images of one block have one size; each size compiles once.

    Raises:
      ValueError: there are no images.
    """
    found = [
      self._batch_features(block[begin : begin + self.batch])
      for block in blocks
      for begin in range(0, len(block), self.batch)
    ]
    if not found:
      raise ValueError("no images to take features of")
    return Features(*map(np.concatenate, zip(*found, strict=True)))

  def _batch_features(self, images: Images) -> Features:
    """Features of one batch, padded to its size with its last image."""
    count = len(images)
    padding = np.repeat(images[-1:], self.batch - count, axis=0)
    batch = self._sharding.distribute(
      {"image": np.concatenate([images, padding])}
    )
    features = self._features(self._variables, batch["image"])
    return jax.tree.map(lambda rows: processes.gather(rows)[:count], features)
