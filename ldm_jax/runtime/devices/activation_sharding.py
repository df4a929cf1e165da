"""Rows stay where they are: under `fsdp` kernels travel, activations do not."""

import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from ldm_jax.runtime.devices.sharding import Sharding


def constrain_activations(function: Callable, sharding: Sharding) -> Callable:
  """`function`, in whose networks every layer answers where its rows are.

  A kernel that `fsdp` cuts may be multiplied with in two ways: gather the
  kernel, or gather all rows of the batch and compute some features of each.
  XLA's partitioner takes the second now and then (before a convolution of
  what was doubled, for one), and then every device holds an activation of the
  whole global batch. So the rows of what convolutions and dense layers
  answer, and of their gradients, are said to lie where the batch's do; other
  axes stay free.
  """
  if sharding.mesh.shape["fsdp"] == 1:
    return function

  def answer(layer: Callable, args: Any, options: Any, context: Any) -> Any:
    found = layer(*args, **options)
    is_layer = isinstance(context.module, nn.Conv | nn.Dense)
    if not is_layer or context.method_name != "__call__":
      return found
    return sharding.hold(found)

  @functools.wraps(function)
  def held(*args: Any, **options: Any) -> Any:
    with nn.intercept_methods(answer):
      return function(*args, **options)

  return held
