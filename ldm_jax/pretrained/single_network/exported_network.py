"""A network with its config and the tensors of a foreign file."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.pretrained.dit.tensors import with_copies
from ldm_jax.pretrained.networks import Module, geometry
from ldm_jax.pretrained.single_network.batch_statistics import (
  own_names,
  statistics_tensors,
)
from ldm_jax.weights.lazy_tensors import LazyTensor
from ldm_jax.weights.naming import convert
from ldm_jax.weights.naming.convert_lazily import revert_lazily
from ldm_jax.weights.naming.parameter_names import name_table


@dataclasses.dataclass(frozen=True)
class ExportedNetwork:
  """A network to be written.

  Attributes:
    name: its subfolder.
    kind: what weights/naming/parameter_names.py calls it in single files.
    config: its config.json.
    labels: of a DiT, the variables of its conditioner, which diffusers has
      inside the network.
  """

  name: str
  kind: str
  module: Module
  params: Any
  config: dict[str, Any]
  labels: Any = None

  def tensors(
    self, scheme: str, dtype: np.dtype
  ) -> dict[str, LazyTensor | np.ndarray]:
    """By foreign name, in `dtype`; each is made when it is read.

    Raises:
      WeightsError: the scheme has no name for a parameter.
    """
    kind = (
      "clip" if scheme == "diffusers" and "clip" in self.kind else self.kind
    )
    found = name_table(
      kind,
      scheme,
      convert.shapes(self.params),
      geometry(self.module, self.config),
    )
    tensors = revert_lazily(found, self.params, dtype)
    tensors |= _batch_counts(tensors)
    tensors |= _mask_token(self.module, dtype)
    tensors |= statistics_tensors(self.module, dtype)
    if self.labels is not None:
      shapes = convert.shapes(self.labels)
      found = name_table("dit_labels", scheme, shapes)
      tensors |= revert_lazily(found, self.labels, dtype)
      return with_copies(tensors, self.module.depth)
    is_single = scheme == "compvis"
    return own_names(self.module, tensors) if is_single else tensors


def _mask_token(module: Module, dtype: np.dtype) -> dict[str, np.ndarray]:
  """DINOv2's token of masked patches, which transformers expects; zeros.

  It is of pre-training alone and not read.
  """
  if not isinstance(module, DinoV2):
    return {}
  return {"embeddings.mask_token": np.zeros((1, module.width), dtype)}


def _batch_counts(names: Iterable[str]) -> dict[str, np.ndarray]:
  """The counts that torch's batch norms hold with their statistics.

  They are not used, and 0 stands for a number that is not known.
  """
  statistics, count = ".running_mean", np.zeros((), np.int64)
  return {
    name.removesuffix(statistics) + ".num_batches_tracked": count
    for name in names
    if name.endswith(statistics)
  }
