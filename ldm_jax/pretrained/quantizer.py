"""Published networks with their matrices in 8 bits, and what that costs."""

import logging
import math
import re
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError
from ldm_jax.nn.operators.quantized_array import QuantizedArray, has_quantized
from ldm_jax.pretrained.networks import (
  ForeignNetwork,
  Module,
  load,
  load_lazily,
)
from ldm_jax.weights.quantize import WeightDtype, quantize

logger = logging.getLogger(__name__)

# Kernels that stay: the first and last layers and those of the time are small,
# and their errors are those of every output.
_KEPT = r"(^|/)(patches|conv_in|conv_out|proj_out|(time|guidance)_\d)/"
MIN_SIZE = 4096  # elements; a smaller matrix saves next to nothing
_WHOLE = ("vae",)  # subfolders of networks that are kept as they are


def is_stored(path: str, shape: tuple[int, ...]) -> bool:
  """Whether a parameter is kept in 8 bits: a kernel of `MIN_SIZE` elements."""
  return (
    path.endswith("kernel")
    and len(shape) > 1
    and math.prod(shape) >= MIN_SIZE
    and re.search(_KEPT, path) is None
  )


def quantized(
  array: np.ndarray, weight_dtype: WeightDtype, dtype: DTypeLike
) -> tuple[QuantizedArray, float]:
  """A parameter in 8 bits, and |W - Q| / |W|.

  Args:
    dtype: in which modules read it.
  """
  found = quantize(array, weight_dtype)
  values, scale = jnp.asarray(found.values), jnp.asarray(found.scale)
  return QuantizedArray(values, scale, jnp.dtype(dtype).name), found.error


def check_weight_dtype(name: str | None) -> None:
  """Raises ConfigError unless it is a `WeightDtype`, or None."""
  known = get_args(WeightDtype)
  if name not in (None, *known):
    raise ConfigError(
      f"weight_dtype={name!r} must be one of {', '.join(known)}"
    )


def load_quantized(
  network: ForeignNetwork,
  name: str,
  dtype: DTypeLike | None,
  weight_dtype: WeightDtype | None,
) -> tuple[Module, dict[str, Any]]:
  """As `networks.load`, with matrices in `weight_dtype` if it is given.

  Logs how many, and the mean and the largest of their errors. An autoencoder
  is kept as it is.

  Args:
    name: the network's subfolder.
    dtype: None leaves every parameter in its file; see `load_lazily`.
  """
  if dtype is None:
    return load_lazily(network)
  if weight_dtype is None or name in _WHOLE:
    return load(network, dtype)
  errors: dict[str, float] = {}

  def store(path: str, array: np.ndarray) -> QuantizedArray | None:
    if not is_stored(path, array.shape):
      return None
    kept, errors[path] = quantized(array, weight_dtype, dtype)
    return kept

  loaded = load(network, dtype, store)
  if errors:
    worst = max(errors, key=errors.__getitem__)
    logger.info(
      "%s: %d matrices in %s, relative error %.2g on average and %.2g at most "
      "(%s)",
      *(name, len(errors), weight_dtype),
      *(sum(errors.values()) / len(errors), errors[worst], worst),
    )
  return loaded


def check_not_quantized(params: Any) -> None:
  """Raises ConfigError if a parameter is in 8 bits, for it cannot be saved."""
  if has_quantized(params):
    raise ConfigError(
      "parameters in 8 bits cannot be saved as they were; open the model "
      "without weight_dtype"
    )


def requantized(array: np.ndarray, leaf: QuantizedArray) -> QuantizedArray:
  """An array in the format of `leaf`."""
  weight_dtype = "int8" if leaf.values.dtype == jnp.int8 else "float8_e4m3fn"
  return quantized(array, weight_dtype, leaf.dtype)[0]


def quantization_errors(
  network: ForeignNetwork, name: str, weight_dtype: WeightDtype
) -> dict[str, float]:
  """|W - Q| / |W| of every matrix that `load_quantized` keeps in 8 bits.

  Args:
    name: the network's subfolder.

  Raises:
    ConfigError, WeightsError: as `networks.load`.
  """
  errors: dict[str, float] = {}
  if name in _WHOLE:
    return errors

  def measure(path: str, array: np.ndarray) -> np.ndarray:
    if is_stored(path, array.shape):
      errors[path] = quantize(array, weight_dtype).error
    return np.zeros(())  # nothing is kept

  load(network, "float32", measure)
  return errors
