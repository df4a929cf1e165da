"""A text encoder in a file of its own: t5xxl, clip_l, clip_g."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.text.encoder_shapes import CLIP_TOKENS, encoder_config
from ldm_jax.pretrained.text.t5_config import is_t5
from ldm_jax.pretrained.text.transformers_names import own_tensors

_NAME = "text_encoder"


def find_text_encoder(
  path: str,
  tensors: Mapping[str, np.ndarray],
  config: Mapping[str, Mapping[str, Any]],
) -> ForeignNetwork | None:
  """The text encoder that a single file holds; None without one.

  Args:
    config: under "text_encoder" keys of its config.json that override what
      shapes show.

  Raises:
    WeightsError: it is a T5 of another version than 1.1, or malformed.
  """
  if not is_t5(tensors) and CLIP_TOKENS not in tensors:
    return None
  shapes = {name: tuple(np.shape(tensors[name])) for name in tensors}
  kind, own = encoder_config(_NAME, shapes, config.get(_NAME, {}))
  return ForeignNetwork(own, own_tensors(kind, tensors), kind, "compvis", path)
