"""Matrices in 8 bits with a scale for each output."""

import math
from typing import Literal, NamedTuple

import ml_dtypes  # noqa: F401, names float8_e4m3fn for numpy
import numpy as np
from jaxtyping import Float

WeightDtype = Literal["int8", "float8_e4m3fn"]

BLOCK = 2**22  # elements that are in float32 at once
ALIGNMENT = 64  # bytes; of XLA's buffers on a CPU
_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


class Quantized(NamedTuple):
  """W = values * scale, about.

  Attributes:
    values: int8 or float8_e4m3fn, of W's shape.
    scale: float32, [1 ... o].
    error: |W - values * scale| / |W|, of Euclidean norms over the matrix.
  """

  values: np.ndarray
  scale: np.ndarray
  error: float


def quantize(
  array: Float[np.ndarray, "... o"], weight_dtype: WeightDtype
) -> Quantized:
  """The nearest values in 8 bits; an output is an index of the last axis.

  int8: scale = max |W| / 127 over an output's weights, values =
  round(W / scale). float8_e4m3fn: the scale is the least power of two at which
  no value exceeds 448, so a matrix that was in that format keeps every bit.
  """
  outputs = array.shape[-1]
  values = _aligned(array.shape, np.dtype(weight_dtype))
  scale = np.empty((*[1] * (array.ndim - 1), outputs), np.float32)
  error = size = 0.0
  step = max(1, BLOCK * outputs // max(1, array.size))
  for start in range(0, outputs, step):
    block = (..., slice(start, start + step))
    wide = np.array(array[block], np.float32)
    size += float(np.square(wide, dtype=np.float64).sum())
    scale[block] = _scales(wide, weight_dtype)
    rounded = wide / scale[block]
    if weight_dtype == "int8":
      np.rint(rounded, out=rounded)
    values[block] = rounded
    wide -= values[block].astype(np.float32) * scale[block]
    error += float(np.square(wide, dtype=np.float64).sum())
  return Quantized(values, scale, (error / size) ** 0.5 if size else 0.0)


def _scales(
  wide: Float[np.ndarray, "... o"], weight_dtype: WeightDtype
) -> Float[np.ndarray, "... o"]:
  """The scale of each output; 1 for an output of zeros."""
  axes = tuple(range(wide.ndim - 1))
  scale = np.abs(wide).max(axes, keepdims=True) / _LARGEST[weight_dtype]
  if weight_dtype == "float8_e4m3fn":
    # At least the least normal number; frexp gives m 2^e, m in [.5, 1).
    mantissa, exponent = np.frexp(np.maximum(scale, 2.0**-126))
    scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
  return np.where(scale > 0, scale, 1)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An empty array at an address that jax takes without a copy."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)
