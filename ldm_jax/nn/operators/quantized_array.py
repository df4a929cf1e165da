"""Parameters in 8 bits, which modules read as floating-point numbers."""

import contextvars
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array

# The input of the module that is being computed.
_input = contextvars.ContextVar("_input", default=None)


@flax.struct.dataclass
class QuantizedArray(meta.AxisMetadata):
  """W = values * scale, with one scale for each output (weight-only, W8A16).

  It stands in a tree of parameters in place of an array. Linen unboxes it where
  a module reads the parameter, so any module computes with it, and a matrix
  exists in full only while its layer is computed. The gradient towards 8-bit
  values does not exist: it is for sampling.

  Attributes:
    values: int8 or float8_e4m3fn, [... o]; of the parameter's shape.
    scale: float32, the same with every axis but the last of length 1.
    dtype: of the parameter that modules read.
  """

  # Any: as a tree it carries shapes and shardings as well as arrays.
  values: Any
  scale: Any
  dtype: str = flax.struct.field(pytree_node=False, default="float32")

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the parameter."""
    return self.values.shape

  def unbox(self) -> Array:
    """values * scale, in `dtype`; under `apply` not before it is needed."""
    values, x = self.values, _input.get()
    if x is not None:
      values, _ = jax.lax.optimization_barrier((values, x))
    return (values.astype(jnp.float32) * self.scale).astype(self.dtype)

  def replace_boxed(self, val: Any) -> Any:
    """`val` itself: what was changed is no longer quantized."""
    return val

  def add_axis(self, index: int, params: dict[Any, Any]) -> "QuantizedArray":
    """The same: a new axis has no metadata here."""
    del index, params
    return self

  def remove_axis(self, index: int, params: dict[Any, Any]) -> "QuantizedArray":
    """As `add_axis`."""
    del index, params
    return self


def is_quantized(leaf: Any) -> bool:
  """Whether a leaf, or a node, of a tree of parameters is in 8 bits."""
  return isinstance(leaf, QuantizedArray)


def map_parameters(function: Callable[[Any], Any], tree: Any) -> Any:
  """`jax.tree.map` over parameters, each `QuantizedArray` as a whole."""
  return jax.tree.map(function, tree, is_leaf=is_quantized)


def has_quantized(tree: Any) -> bool:
  """Whether any parameter of a tree is in 8 bits."""
  leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
  return any(map(is_quantized, leaves))


def apply(
  module: nn.Module, variables: Mapping[str, Any], *args: Any, **options: Any
) -> Any:
  """`module.apply`, which reads each quantized matrix when its layer begins.

  Otherwise XLA computes all matrices at once, and moves them out of the loop
  over a sampler's steps: they would take the memory that 8 bits save.
  """
  if not has_quantized(variables):
    return module.apply(variables, *args, **options)
  with nn.intercept_methods(_with_input):
    return module.apply(variables, *args, **options)


def _with_input(
  next_method: Callable[..., Any],
  args: tuple[Any, ...],
  options: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  """The method, with its first argument as the input that `unbox` waits for."""
  del context
  is_array = bool(args) and isinstance(args[0], jax.Array)
  token = _input.set(args[0] if is_array else None)
  try:
    return next_method(*args, **options)
  finally:
    _input.reset(token)
