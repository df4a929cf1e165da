"""The tensors of T5's encoder in folders and files of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.single_file.renamed_tensors import Renamed, under_prefix
from ldm_jax.pretrained.text.t5_config import (
  TIED,
  TOKENS,
  config_of_shapes,
  is_t5,
)


def with_one_table(
  tensors: Mapping[str, np.ndarray],
) -> Mapping[str, np.ndarray]:
  """The tensors with the table of tokens under one name.

  Files hold it as shared.weight, as encoder.embed_tokens.weight, or as both.

  Raises:
    WeightsError: there are both, and they differ.
  """
  if TIED not in tensors:
    return tensors
  if TOKENS not in tensors:
    names = {name: name for name in tensors if name != TIED}
    return Renamed(tensors, names | {TOKENS: TIED})
  if not np.array_equal(tensors[TOKENS], tensors[TIED]):
    raise WeightsError(
      f"{TOKENS} and {TIED} differ; they are one table of tokens"
    )
  return tensors


def find_t5(
  path: str,
  tensors: Mapping[str, np.ndarray],
  prefix: str = "",
  config: Mapping[str, Mapping[str, Any]] | None = None,
) -> ForeignNetwork | None:
  """T5's encoder among the tensors of a single file; None without one.

  Args:
    prefix: of its tensors.
    config: under "text_encoder" keys of its config.json that override what
      shapes show.

  Raises:
    WeightsError: it is not of version 1.1, or malformed.
  """
  own = under_prefix(tensors, prefix) if prefix else tensors
  if not is_t5(own):
    return None
  shapes = {name: tuple(np.shape(own[name])) for name in own}
  found = config_of_shapes(shapes) | dict(
    (config or {}).get("text_encoder", {})
  )
  return ForeignNetwork(found, with_one_table(own), "t5", "compvis", path)
