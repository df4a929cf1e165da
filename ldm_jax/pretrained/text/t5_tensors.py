"""The tensors of T5's encoder in folders and files."""

from collections.abc import Mapping

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.single_file.renamed_tensors import Renamed
from ldm_jax.pretrained.text.t5_config import TIED, TOKENS


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
