"""The names of a model's matrices in LoRA files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.conditioner_variables import split_variables
from ldm_jax.pretrained.model_index import text_encoder_folders
from ldm_jax.weights.naming.convert import Row, Table, list_names, shapes
from ldm_jax.weights.naming.parameter_names import Geometry, name_table

Tensors = Mapping[str, np.ndarray]

# Ends of names: kohya's, peft's, and those of diffusers before it used peft.
_ROLES = {
  "down": re.compile(
    r"\.(lora_down|lora_A(\.default)?|((lora|lora_linear_layer)\.)?down)"
    r"\.weight$"
  ),
  "up": re.compile(
    r"\.(lora_up|lora_B(\.default)?|((lora|lora_linear_layer)\.)?up)\.weight$"
  ),
  "alpha": re.compile(r"\.alpha$"),
}
_PEFT = "base_model.model."
# Attention layers as diffusers' processors named them before it used peft.
_PROCESSORS = {
  ".to_q": ".processor.to_q_lora",
  ".to_k": ".processor.to_k_lora",
  ".to_v": ".processor.to_v_lora",
  ".to_out.0": ".processor.to_out_lora",
  ".q_proj": ".to_q_lora",
  ".k_proj": ".to_k_lora",
  ".v_proj": ".to_v_lora",
  ".out_proj": ".to_out_lora",
}
# LyCORIS' and peft's other adapters, by patterns of their tensors' names.
_OTHERS = {
  "DoRA": r"dora_scale|lora_magnitude_vector",
  "LoHa": r"hada_\w+",
  "LoKr": r"lokr_\w+",
  "OFT": r"b?oft_\w+",
  "GLoRA": r"[ab][12]",
  "IA3": r"on_input",
  "LoCon with Tucker's cores": r"lora_mid",
  "LoRA of embeddings": r"lora_embedding_[AB]",
  "set of differences of norms": r"[wb]_norm",
  "set of differences of whole weights": r"diff(_b)?|set_weight",
}
# Features of the context of a family's U-Net.
_CONTEXTS = {768: "SD 1", 1024: "SD 2", 1280: "SDXL's refiner", 2048: "SDXL"}
_CONTEXT = re.compile(r"attn2[._](processor\.)?to_[kv]")
_MARKS = {
  "double_blocks": "Flux",
  "single_transformer_blocks": "Flux",
  "joint_blocks": "Stable Diffusion 3",
  "lora_te1_": "SDXL",
  "lora_te2_": "SDXL",
  "text_encoder_2.": "SDXL",
}


class Target(NamedTuple):
  """A matrix of a model.

  Attributes:
    path: of its leaf, from `Parameters` on.
    row: its name and layout in published files.
  """

  path: tuple[str, ...]
  row: Row


class Pair(NamedTuple):
  """The factors that a file has for one matrix.

  Attributes:
    module: the matrix's name in the file.
    down: [r i ...], from features to the rank.
    up: [o r ...], from the rank to features.
    alpha: divided by the rank it scales the product; None without a tensor.
  """

  module: str
  target: Target
  down: np.ndarray
  up: np.ndarray
  alpha: float | None


def pairs(tensors: Tensors, loaded: LoadedModel) -> list[Pair]:
  """The tensors of a LoRA, matched with the model's matrices by name.

  kohya's names have underscores for dots too, so names are not parsed but
  looked up among all names that the model's matrices may have.

  Raises:
    WeightsError: a tensor fits no matrix, two stand for the same, one lacks its
      counterpart, or they are of another kind of adapter.
  """
  _refuse_others(tensors)
  known = targets(loaded)
  groups, modules, unfit = {}, {}, []
  for name in tensors:
    role, module = _split(name)
    target = known.get(module)
    if role is None or target is None:
      unfit.append(name)
      continue
    group = groups.setdefault(target.path, {})
    if role in group:
      raise WeightsError(f"{group[role]} and {name} are for the same matrix")
    group[role] = name
    modules[target.path] = module, target
  for path, group in groups.items():
    if not _fits(group, tensors, modules[path][1].row):
      unfit.extend(group.values())
  if not tensors:
    raise WeightsError("it holds no tensors; a LoRA is needed")
  if unfit:
    raise WeightsError(_misfit(unfit, tensors, loaded))
  return [
    _pair(*modules[path], tensors, group) for path, group in groups.items()
  ]


def targets(loaded: LoadedModel) -> dict[str, Target]:
  """Every matrix of the U-Net and the CLIP text encoders, by all its names.

  No two matrices share a name.
  """
  found = {}
  for starts, path, names in networks(loaded):
    for row in names.rows:
      is_matrix = row.layout != "same" and row.part is None
      if not is_matrix or not row.foreign_name.endswith(".weight"):
        continue
      target = Target((*path, *row.path.split("/")), row)
      for name in _spellings(row.foreign_name.removesuffix(".weight"), starts):
        found.setdefault(name, target)
        assert found[name].path == target.path, name
  return found


def networks(
  loaded: LoadedModel, schemes: Sequence[str] = ("diffusers", "compvis")
) -> Iterator[tuple[Sequence[str], tuple[str, ...], Table]]:
  """(prefixes of module names, path, name table) of every network.

  Raises:
    ConfigError: the backbone is not a `UNet`, so LoRA files have no names.
  """
  if not isinstance(loaded.model.unet, UNet):
    raise ConfigError(
      "LoRA files have no names for a backbone of class "
      f"{type(loaded.model.unet).__name__}; expected a UNet"
    )
  unet, params = loaded.model.unet, loaded.params.unet["params"]
  starts = ("", "unet.", "diffusion_model.", "lora_unet_")
  vectors = {"mlp": ("add_embedding", "class_embedding")}
  for vector in vectors.get(unet.vector, ("add_embedding",)):
    heads = Geometry(unet.attention.heads, unet.attention.head_width, vector)
    for scheme in schemes:
      names = name_table("unet", scheme, shapes(params), heads)
      yield starts, ("unet", "params"), names
  for conditioner in loaded.model.conditioners:
    if isinstance(conditioner, ClipEmbedder):
      yield from _text_encoders(loaded, conditioner)


def _text_encoders(loaded: LoadedModel, embedder: ClipEmbedder):
  """As `networks`; kohya numbers the text encoders where there are two."""
  key = embedder.input_key
  encoders = split_variables(embedder, loaded.params.conditioners[key])
  for i, (_, variables) in enumerate(encoders):
    name = text_encoder_folders(loaded.model)[i]
    number = 2 if name == "text_encoder_2" else 1
    short = f"lora_te{number}_" if number * len(encoders) > 1 else "lora_te_"
    starts = (f"{name}.", short, f"{name}.text_model.", f"{short}text_model_")
    names = name_table("clip", "diffusers", shapes(variables["params"]))
    path = ("conditioners", key, "params", f"encoders_{i}")
    yield starts, path, names


def _spellings(module: str, starts: Sequence[str]) -> Iterator[str]:
  """A module's names: with dots, diffusers' older ones, and kohya's."""
  older = [
    module.removesuffix(end) + old
    for end, old in _PROCESSORS.items()
    if module.endswith(end)
  ]
  for start in starts:
    if start.endswith("_"):
      yield start + module.replace(".", "_")
    else:
      yield from (start + name for name in (module, *older))


def _split(name: str) -> tuple[str | None, str]:
  """A tensor's role, if its name has one, and its module."""
  for role, pattern in _ROLES.items():
    if match := pattern.search(name):
      return role, name[: match.start()].replace(_PEFT, "", 1)
  return None, name


def _refuse_others(tensors: Tensors) -> None:
  for name in tensors:
    for kind, pattern in _OTHERS.items():
      if re.search(rf"\.({pattern})(\.|$)", name):
        raise WeightsError(
          f"{name} {np.shape(tensors[name])} is of a {kind}, which cannot be "
          "merged here; expected a LoRA (lora_down and lora_up, or lora_A and "
          "lora_B)"
        )


def _fits(group: Mapping[str, str], tensors: Tensors, row: Row) -> bool:
  """Whether both halves are there, and their product has the row's shape.

  Axes of length one at the end are free, as everywhere: proj_in is a matrix in
  some models and a convolution in others.
  """
  if not {"down", "up"} <= group.keys():
    return False
  down, up = tensors[group["down"]], tensors[group["up"]]
  if any(x.dtype.kind not in "fV" or x.ndim < 2 for x in (down, up)):
    return False
  if "alpha" in group and tensors[group["alpha"]].size != 1:
    return False
  rank, needed = len(down), row.foreign_shape()
  return (
    0 < rank == up.shape[1]
    and up.size == needed[0] * rank
    and len(up) == needed[0]
    and _without_ones(down.shape[1:]) == _without_ones(needed[1:])
  )


def _pair(
  module: str, target: Target, tensors: Tensors, group: Mapping[str, str]
) -> Pair:
  alpha = None
  if "alpha" in group:
    alpha = float(tensors[group["alpha"]].reshape(()))
  return Pair(
    module, target, tensors[group["down"]], tensors[group["up"]], alpha
  )


def _without_ones(shape):
  while shape and shape[-1] == 1:
    shape = shape[:-1]
  return shape


def _misfit(unfit: list[str], tensors: Tensors, loaded: LoadedModel) -> str:
  """The error's line: what does not fit, and which model it may be for."""
  file_family, family = _family(tensors), _model_family(loaded)
  hint = "expected two factors for matrices that it has"
  if file_family not in (None, family):
    hint = f"the file seems to be for {file_family}"
  return (
    f"{len(unfit)} of {len(tensors)} tensors do not fit the model, which is "
    f"{family}; {hint}; they are "
    f"{list_names(unfit, lambda name: np.shape(tensors[name]))}"
  )


def _family(tensors: Tensors) -> str | None:
  """The family a LoRA is for, by the width of its context or by a name."""
  for name, tensor in tensors.items():
    role, module = _split(name)
    if role == "down" and _CONTEXT.search(module) and tensor.ndim > 1:
      return _named(tensor.shape[1])
  marked = (f for mark, f in _MARKS.items() if any(mark in n for n in tensors))
  return next(marked, None)


def _model_family(loaded: LoadedModel) -> str:
  sizes = shapes(loaded.params.unet["params"])
  ends = "attention2/k/kernel"
  widths = (size[0] for name, size in sizes.items() if name.endswith(ends))
  width = next(widths, None)
  return _named(width) if width else "one that attends to no text"


def _named(width: int) -> str:
  """The family whose U-Net has a context of so many features."""
  return f"{_CONTEXTS.get(width, 'one')} with a context of {width}"
