"""The config.json of a FLUX.1, from the shapes of its authors' tensors."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import WeightsError
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.pretrained.configs.strict_config import DIFFUSERS
from ldm_jax.pretrained.flux.flux_config import FLUX

Shapes = Mapping[str, tuple[int, ...]]

FIRST = "double_blocks.0.img_attn.norm.query_norm.scale"
GUIDANCE = "guidance_in.in_layer.weight"
_PATCHES, _TEXT = "img_in.weight", "txt_in.weight"
_VECTOR, _LAST = "vector_in.in_layer.weight", "final_layer.linear.weight"
# Parts of tensors' names of networks that share some of FLUX.1's names.
_OTHERS = {
  "distilled_guidance_layer.": "Chroma",
  "double_stream_modulation": "FLUX.2",
  "controlnet": "a ControlNet of FLUX",
  "input_hint_block": "a ControlNet of FLUX",
  "pulid_ca": "PuLID's adapter of FLUX",
}


def refuse_others(names: Mapping[str, Any]) -> None:
  """Raises WeightsError for tensors of a network that is not read."""
  for mark, kind in _OTHERS.items():
    if found := next((name for name in names if mark in name), None):
      raise WeightsError(
        f"{found} is of {kind}, which is not read; needed are the tensors of "
        "FLUX.1"
      )


def config_of_shapes(
  shapes: Shapes, overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """The config.json of a network with tensors of these shapes.

  Args:
    overrides: keys of it. The features of a head that turn with each coordinate
      are those of all published models, unless a head has another number.

  Raises:
    WeightsError: they are not those of FLUX.1, or heads are of another width
      and their axes not given.
  """
  names = _PATCHES, _TEXT, _VECTOR, _LAST
  found = [shapes.get(name, ()) for name in (*names, FIRST)]
  ranks = [len(shape) for shape in found]
  if ranks != [2, 2, 2, 2, 1] or any(0 in shape for shape in found):
    raise WeightsError(
      f"{', '.join((*names, FIRST))} of shapes "
      f"{', '.join(map(str, found))} are not those of FLUX.1"
    )
  (width, inputs), (_, context), (_, vector), (outputs, _), (head,) = found
  if width % head:
    raise WeightsError(
      f"{_PATCHES} has {width} rows, which do not divide into heads of "
      f"{FIRST}'s {head}"
    )
  if head != sum(Flux.axes) and "axes_dims_rope" not in overrides:
    raise WeightsError(
      f"shapes do not show how heads of {head} features are rotated; published "
      "ones have 128: give three numbers as "
      'config={"unet": {"axes_dims_rope": ...}}, or a folder of configs '
      "(--config=FOLDER)"
    )
  found = {
    "_class_name": FLUX.kind,
    "_diffusers_version": DIFFUSERS,
    "attention_head_dim": head,
    "axes_dims_rope": list(Flux.axes),
    "guidance_embeds": GUIDANCE in shapes,
    "in_channels": inputs,
    "joint_attention_dim": context,
    "num_attention_heads": width // head,
    "num_layers": _depth(shapes, "double_blocks"),
    "num_single_layers": _depth(shapes, "single_blocks"),
    "out_channels": outputs,
    "patch_size": 1,
    "pooled_projection_dim": vector,
  }
  return found | dict(overrides)


def _depth(shapes: Shapes, blocks: str) -> int:
  numbers = {
    int(number)
    for name in shapes
    if name.startswith(f"{blocks}.")
    and (number := name.split(".")[1]).isdecimal()
  }
  return max(numbers, default=-1) + 1
