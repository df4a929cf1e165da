"""The error of a LoRA file that does not fit a model."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.pretrained.lora.tensor_names import parse_name
from ldm_jax.weights.naming.convert import list_names, shapes

Tensors = Mapping[str, np.ndarray]

# Features of the context of a family's U-Net.
_CONTEXTS = {768: "SD 1", 1024: "SD 2", 1280: "SDXL's refiner", 2048: "SDXL"}
_CONTEXT = re.compile(r"attn2[._](processor\.)?to_[kv]")
_TRANSFORMERS = {
  "double_blocks": "FLUX",
  "single_blocks": "FLUX",
  "single_transformer_blocks": "FLUX",
  "joint_blocks": "Stable Diffusion 3",
}
_OF_TWO_TEXTS = {"lora_te2_": "SDXL", "text_encoder_2.": "SDXL"}
_FAMILIES = {Flux: "FLUX", MMDiT: "Stable Diffusion 3", DiT: "DiT"}


def mismatch(unfit: list[str], tensors: Tensors, loaded: LoadedModel) -> str:
  """The error's line: what does not fit, and which model it may be for."""
  file_family, family = _family(tensors), _model_family(loaded)
  hint = (
    "needed are factors or differences of parameters that it has, and nothing "
    "else"
  )
  if file_family not in (None, family):
    hint = f"the file seems to be for {file_family}"
  return (
    f"{len(unfit)} of {len(tensors)} tensors do not fit the model, which is "
    f"{family}; {hint}; they are "
    f"{list_names(unfit, lambda name: np.shape(tensors[name]))}"
  )


def _family(tensors: Tensors) -> str | None:
  """The family a LoRA is for, by the width of its context or by a name."""
  if (family := _marked(_TRANSFORMERS, tensors)) is not None:
    return family
  for name, tensor in tensors.items():
    module, role, _ = parse_name(name)
    is_down = role == "lora_down" and tensor.ndim > 1
    if is_down and _CONTEXT.search(module):
      return _named(tensor.shape[1])
  return _marked(_OF_TWO_TEXTS, tensors)


def _marked(marks: Mapping[str, str], names: Collection[str]) -> str | None:
  """The family of the first mark that is part of a name."""
  found = (f for mark, f in marks.items() if any(mark in n for n in names))
  return next(found, None)


def _model_family(loaded: LoadedModel) -> str:
  if (family := _FAMILIES.get(type(loaded.model.unet))) is not None:
    return family
  sizes = shapes(loaded.params.unet["params"])
  ends = "attention2/k/kernel"
  widths = (size[0] for name, size in sizes.items() if name.endswith(ends))
  width = next(widths, None)
  return _named(width) if width else "one that attends to no text"


def _named(width: int) -> str:
  """The family whose U-Net has a context of so many features."""
  return f"{_CONTEXTS.get(width, 'one')} with a context of {width}"
