"""Activations stay sharded over the batch, and tokens over the context."""

import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from ldm_jax.runtime.devices.sharding import Sharding


def constrain_activations(function: Callable, sharding: Sharding) -> Callable:
  """`function`, with the batch axis of every layer's arrays constrained.

  A kernel that `fsdp` shards can be applied in two ways: gather the kernel, or
  gather the activations of the whole global batch and compute some output
  features of each. XLA's partitioner sometimes takes the second (before a
  convolution of upsampled features; in jax 0.12 also for the kernel's gradient
  of a convolution of concatenated features), and then every device holds an
  activation of the whole batch. So inputs and outputs of convolutions and dense
  layers, and with them their gradients, are constrained to the sharding of the
  batch along their first axis; other axes stay free. Under `context` the tokens
  of dense layers, [b l d], are sharded too, so that each device holds and
  computes its part of an image's tokens.
  """
  shape = sharding.mesh.shape
  if shape["fsdp"] == 1 and shape["context"] == 1:
    return function
  kinds = nn.Conv | nn.Dense if shape["fsdp"] > 1 else nn.Dense

  def answer(layer: Callable, args: Any, options: Any, context: Any) -> Any:
    is_layer = isinstance(context.module, kinds)
    if not is_layer or context.method_name != "__call__":
      return layer(*args, **options)
    inputs, *rest = args
    return sharding.constrain_rows(
      layer(sharding.constrain_rows(inputs), *rest, **options)
    )

  @functools.wraps(function)
  def held(*args: Any, **options: Any) -> Any:
    with nn.intercept_methods(answer):
      return function(*args, **options)

  return held
