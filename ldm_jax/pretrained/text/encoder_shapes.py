"""Text encoders under transformers' names, by the shapes of their tensors."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.configs import text_encoder_config
from ldm_jax.pretrained.single_file.tensor_shapes import (
  Shape,
  Shapes,
  read_clip,
)
from ldm_jax.pretrained.text.t5_config import config_of_shapes, is_t5

CLIP_TOKENS = "text_model.embeddings.token_embedding.weight"
_PROJECTION = "text_projection.weight"
_HEAD = 64  # features of a head, in all published ones
_OPEN_WIDTH = 1024  # OpenCLIP's published text encoders are this wide, or wider


def encoder_config(
  name: str,
  shapes: Mapping[str, Shape],
  overrides: Mapping[str, Any],
  is_projected: bool = True,
) -> tuple[str, dict[str, Any]]:
  """(kind, config.json) of T5's encoder, or of a text encoder of CLIP.

  Args:
    name: its subfolder, for errors.
    shapes: of its tensors, without a prefix.
    overrides: keys of its config.json, in place of what shapes show.
    is_projected: the pooled vector is projected if there is a matrix.

  Raises:
    WeightsError: T5 is not of version 1.1, or the heads of CLIP are unknown.
  """
  if is_t5(shapes) or CLIP_TOKENS not in shapes:
    return "t5", config_of_shapes(shapes) | dict(overrides)
  module = read_clip(Shapes(shapes, "text_model."))
  heads = overrides.get("num_attention_heads") or module.width // _HEAD
  if not heads or module.width % heads:
    raise WeightsError(
      f"{name} of {module.width} features and {heads} heads; give its number "
      f'of heads as config={{"{name}": {{"num_attention_heads": ...}}}}'
    )
  projection = shapes.get(_PROJECTION) if is_projected else None
  is_open = name == "text_encoder_2" or module.width >= _OPEN_WIDTH
  module = module.clone(
    heads=heads,
    activation="gelu" if is_open else "quick_gelu",
    projection=projection and projection[0],
  )
  config = text_encoder_config.clip_config(module)
  return "clip", config | dict(overrides)
