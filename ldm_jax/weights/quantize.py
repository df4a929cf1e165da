"""Matrices in 8 bits with a scale for each output."""

from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float

WeightDtype = Literal["int8", "float8_e4m3fn"]

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
  wide = np.array(array, np.float32)
  axes = tuple(range(wide.ndim - 1))
  scale = np.abs(wide).max(axes, keepdims=True) / _LARGEST[weight_dtype]
  if weight_dtype == "float8_e4m3fn":
    # At least the least normal number; frexp gives m 2^e, m in [.5, 1).
    mantissa, exponent = np.frexp(np.maximum(scale, 2.0**-126))
    scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  values = wide / scale
  if weight_dtype == "int8":
    values = np.rint(values, out=values).astype(np.int8)
  else:
    values = values.astype(ml_dtypes.float8_e4m3fn)
  size = float(np.linalg.norm(wide))
  wide -= values.astype(np.float32) * scale
  error = float(np.linalg.norm(wide)) / size if size else 0.0
  return Quantized(values, scale, error)
