"""Which algorithm computes a convolution or an attention.

The thresholds were measured on two AVX-512 cores; see benchmarks/cpu.md.
"""

import functools
import math
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Operators = Literal["auto", "xla"]
Convolution = Literal["xla", "winograd", "im2col", "pointwise", "few_outputs"]

VARIABLE = "LDM_JAX_OPERATORS"  # of the environment: the default

# A part of the key under which `jax.jit` keeps traced functions.
_OPERATORS = jax.make_user_context(os.environ.get(VARIABLE, "auto"))

# Below this many channels the transforms cost more than the products save.
_LEAST_CHANNELS = 128
# Up to this many tiles of 2 x 2 pixels Winograd's transform of the kernel costs
# more than the products save.
_FEW_TILES = 40
# Channels up to which products are summed in place of columns being made.
_FEW_OUTPUTS = 8
# Bytes of the columns of im2col.
_MOST_COLUMNS = 2**28
# Numbers of an image that leaves the cache between two passes over it.
_LARGE_IMAGE = 2**20
# Gain of bfloat16's products over casts to float32 from which their columns
# are worth more than Winograd's fewer products, and up to which the products
# themselves are cast.
_COLUMNS_GAIN, _CAST_GAIN = 1.25, 0.9
ASSUMED_GAIN = 2.0  # with AVX512-BF16 or AMX, where nothing was measured
# Scores per head from which one head at a time is faster.
_MANY_SCORES = 2**18


class _Bfloat16:
  """The gain of products in bfloat16, measured at the first call."""

  gain: Callable[[], float] = staticmethod(lambda: ASSUMED_GAIN)


def set_bfloat16_gain(measure: Callable[[], float] | None) -> None:
  """Sets how the gain of products in bfloat16 is found from now on.

  Args:
    measure: returns the time of a product that is cast to float32, to that in
      bfloat16; called at most once, when it is needed. None assumes that of a
      processor with instructions for bfloat16.
  """
  kept = functools.cache(measure or (lambda: ASSUMED_GAIN))
  lock = threading.Lock()

  def gain() -> float:
    with lock:  # threads that trace at once wait for one measurement
      return kept()

  _Bfloat16.gain = staticmethod(gain)


def operators(which: Operators) -> AbstractContextManager:
  """A context in which functions are traced with these operators.

  "auto" takes the fastest of the default backend's platform; "xla" always
  takes XLA's own, which also have forward-mode derivatives (`jax.jvp`) and are
  right for programs that are compiled for another platform than the default
  one. The default is the environment's LDM_JAX_OPERATORS, or "auto".
  """
  return _OPERATORS(which)


def current_operators() -> str:
  """Those with which functions are traced."""
  return _OPERATORS.value


def operators_of(*values: Any) -> Callable[[], str]:
  """What the operators depend on by which programs of these are computed.

  A part of the key of a stored program. The gain of bfloat16 is measured for
  values that name the format alone.

  Args:
    values: the modules, tasks and shapes that a program is made of.
  """
  if not any("bfloat16" in repr(value) for value in values):
    return current_operators

  def current() -> str:
    found = current_operators()
    if is_enabled():
      found += f", columns {_is_by_columns()}, cast {_are_products_cast()}"
    return found

  return current


def is_enabled() -> bool:
  """Whether the operators of this package may be used.

  Raises:
    ValueError: LDM_JAX_OPERATORS has another value than "auto" and "xla".
  """
  which = _OPERATORS.value
  if which not in get_args(Operators):
    raise ValueError(
      f"{VARIABLE}={which} in the environment, needs one of "
      f"{', '.join(get_args(Operators))}"
    )
  return which == "auto" and jax.default_backend() == "cpu"


def choose_convolution(
  pixels: tuple[Any, ...], kernel: tuple[int, ...], dtype: DTypeLike
) -> Convolution:
  """The fastest algorithm of a 1 x 1 or 3 x 3 convolution of stride 1.

  Args:
    pixels: the shape [b h w c] of the input.
    kernel: the shape [1 1 c d] or [3 3 c d] of the kernel.
    dtype: of both. bfloat16 may have fast products but has no convolution on
      CPUs; large images are faster in float32, in which Winograd's transforms
      keep the digits. See `is_cast`.
  """
  if not is_enabled() or not _are_known(pixels):
    return "xla"
  if kernel[:2] == (1, 1):
    return "pointwise" if dtype in (jnp.float32, jnp.bfloat16) else "xla"
  if min(kernel[2:]) < _LEAST_CHANNELS:
    is_few = kernel[2] >= _LEAST_CHANNELS and kernel[3] <= _FEW_OUTPUTS
    return "few_outputs" if is_few and dtype == jnp.float32 else "xla"
  batch, height, width, channels = pixels
  tiles = batch * math.ceil(height / 2) * math.ceil(width / 2)
  if dtype == jnp.bfloat16:
    columns = 2 * 9 * channels * batch * height * width
    is_small = columns <= _MOST_COLUMNS and tiles < 2 * channels
    if is_small and (tiles <= _FEW_TILES or _is_by_columns()):
      return "im2col"
    return "winograd"
  if dtype != jnp.float32:
    return "xla"
  return "im2col" if tiles <= _FEW_TILES else "winograd"


def is_cast(name: Convolution | Literal["product"], dtype: DTypeLike) -> bool:
  """Whether an operator of bfloat16 arrays is computed in float32.

  Winograd's convolution always is, and others where this processor's products
  in bfloat16 are slower than with casts (`set_bfloat16_gain`).
  """
  if dtype != jnp.bfloat16 or name == "xla" or not is_enabled():
    return False
  return name == "winograd" or _are_products_cast()


def _is_by_columns() -> bool:
  return _Bfloat16.gain() > _COLUMNS_GAIN


def _are_products_cast() -> bool:
  return _Bfloat16.gain() < _CAST_GAIN


def is_doubled_at_once(kernel: tuple[int, ...], dtype: DTypeLike) -> bool:
  """Whether nearest doubling and the convolution after it are one operator."""
  return (
    is_enabled() and dtype == jnp.float32 and min(kernel[2:]) >= _LEAST_CHANNELS
  )


def is_normalized_at_once(pixels: tuple[Any, ...], dtype: DTypeLike) -> bool:
  """Whether group norm, and silu after it, are one operator.

  Args:
    pixels: the shape [b ... c] of the image.
    dtype: of the image.
  """
  return (
    is_enabled()
    and dtype == jnp.float32
    and _are_known(pixels)
    and math.prod(pixels) >= _LARGE_IMAGE
  )


def is_by_head(queries: Any, keys: Any, dtype: DTypeLike) -> bool:
  """Whether attention is computed one head after the other."""
  return (
    is_enabled()
    and dtype == jnp.float32
    and _are_known((queries, keys))
    and queries * keys >= _MANY_SCORES
  )


def _are_known(shape: tuple[Any, ...]) -> bool:
  """Whether no size is symbolic, as in `jax.export`."""
  return all(isinstance(size, int) for size in shape)
