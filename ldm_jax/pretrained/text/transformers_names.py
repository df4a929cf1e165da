"""Names of text encoders' tensors as transformers has them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.pretrained.single_file.renamed_tensors import without_prefix
from ldm_jax.pretrained.text.t5_tensors import with_one_table

_CLIP = "text_model."


def own_tensors(
  kind: str, tensors: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
  """A network's tensors under the names of its table.

  Of a network of another kind than "clip" and "t5" they are as they are.

  Raises:
    WeightsError: a T5 has two tables of tokens that differ.
  """
  if kind == "t5":
    return with_one_table(tensors)
  return without_prefix(tensors, _CLIP) if kind == "clip" else tensors


def transformers_tensors(
  kind: str, tensors: Mapping[str, Any]
) -> dict[str, Any]:
  """The inverse, in the form that every tool accepts."""
  if kind != "clip":
    return dict(tensors)
  return {
    name if name.startswith("text_projection") else _CLIP + name: array
    for name, array in tensors.items()
  }
