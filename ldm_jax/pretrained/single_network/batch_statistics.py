"""The tensors that FLUX.2's autoencoder has besides its layers.

They are the averages of a batch norm over its latents, which are a part of the
module's config here, and its two quant convolutions, which Black Forest Labs'
own files have within encoder and decoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.latent_normalization import BatchStatistics

MEAN, VARIANCE = "bn.running_mean", "bn.running_var"
BATCHES = "bn.num_batches_tracked"
NAMES = (MEAN, VARIANCE, BATCHES)
# Names of Black Forest Labs, and of everyone else's single files.
_WITHIN = {
  f"{side}.{name}.{leaf}": f"{name}.{leaf}"
  for side, name in (("encoder", "quant_conv"), ("decoder", "post_quant_conv"))
  for leaf in ("weight", "bias")
}


def usual_names(names: Mapping[str, Any]) -> dict[str, str]:
  """By the usual name of each tensor of a single file, its name there."""
  return {_WITHIN.get(name, name): name for name in names}


def own_names(module: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Tensors of a single file by the names of FLUX.2's, if it is that."""
  if not has_statistics(module):
    return dict(tensors)
  within = {usual: own for own, usual in _WITHIN.items()}
  return {within.get(name, name): tensors[name] for name in tensors}


def has_statistics(module: Any) -> bool:
  """Whether it is an autoencoder with batch statistics of its latents."""
  is_autoencoder = isinstance(module, Autoencoder)
  return is_autoencoder and isinstance(module.normalization, BatchStatistics)


def read_statistics(
  module: Any, tensors: Mapping[str, np.ndarray]
) -> tuple[Any, Mapping[str, np.ndarray]]:
  """The module with the statistics of its file, and the other tensors.

  Any other network, and its tensors, are returned as they are.

  Raises:
    WeightsError: a statistic is missing, or not one number per channel of a
      patch.
  """
  if not has_statistics(module):
    return module, tensors
  found = module.normalization
  count = module.latent_channels * found.patch**2
  values = {}
  for name in (MEAN, VARIANCE):
    if name not in tensors:
      raise WeightsError(
        f"{name} is missing: FLUX.2's latents are normalised by it"
      )
    array = np.asarray(tensors[name]).astype(np.float32)
    if array.shape != (count,):
      raise WeightsError(
        f"{name} has shape {array.shape}; needed: ({count},), "
        f"{module.latent_channels} channels in patches of {found.patch} x "
        f"{found.patch}"
      )
    values[name] = tuple(array.tolist())
  batches = np.asarray(tensors[BATCHES]) if BATCHES in tensors else 0
  try:
    statistics = dataclasses.replace(
      found,
      mean=values[MEAN],
      variance=values[VARIANCE],
      batches=int(batches),
    )
  except ValueError as error:
    raise WeightsError(f"{VARIANCE}: {error}") from error
  rest = {name: tensors[name] for name in tensors if name not in NAMES}
  return module.clone(normalization=statistics), rest


def statistics_tensors(module: Any, dtype: np.dtype) -> dict[str, np.ndarray]:
  """What `read_statistics` read; empty for any other network.

  Raises:
    WeightsError: it has none, for it was not read from a file.
  """
  if not has_statistics(module):
    return {}
  found = module.normalization
  if not found.mean:
    raise WeightsError(
      "the autoencoder has no statistics of its latents; set normalization to "
      "BatchStatistics(mean, variance)"
    )
  return {
    MEAN: np.asarray(found.mean, dtype),
    VARIANCE: np.asarray(found.variance, dtype),
    BATCHES: np.asarray(found.batches, np.int64),
  }
