"""The names of a model's modules in LoRA files."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.conditioner_variables import split_variables
from ldm_jax.pretrained.model_index import text_encoder_folders
from ldm_jax.weights.naming.convert import Row, Table, shapes
from ldm_jax.weights.naming.parameter_names import Geometry, name_table

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
_UNET = (
  "",
  "unet.",
  "diffusion_model.",
  "model.diffusion_model.",
  "lora_unet_",
  "lycoris_",
)
# lora_transformer_ is OneTrainer's; diffusers and ComfyUI read it too.
_TRANSFORMER = (
  "",
  "transformer.",
  "diffusion_model.",
  "model.diffusion_model.",
  "lora_unet_",
  "lora_transformer_",
  "lycoris_",
)
# Backbones other than a U-Net, by the names of their tables.
_TRANSFORMERS = {DiT: "dit", MMDiT: "mmdit", Flux: "flux"}
# ComfyUI's names of text encoders, by diffusers' folders.
_COMFYUI = {
  "text_encoder": ("clip_l", "clip_h"),
  "text_encoder_2": ("clip_g",),
}
# sd-scripts' and ComfyUI's names of T5.
_T5 = ("lora_te3_", "text_encoders.t5xxl.", "text_encoders.t5xxl.transformer.")


class Target(NamedTuple):
  """A parameter of a model.

  Attributes:
    path: of its leaf, from `Parameters` on.
    row: its name and layout in published files.
    inputs: input channels that a change may have too, if those are fewer: the
      latents' of a U-Net that reads more than them. The rest is not changed.
  """

  path: tuple[str, ...]
  row: Row
  inputs: int | None = None


class Module(NamedTuple):
  """The parameters of a module, of which it may lack either."""

  weight: Target | None = None
  bias: Target | None = None


Modules = tuple[Module, ...]  # one, or those that a file stacks in one


def modules(loaded: LoadedModel) -> dict[str, Modules]:
  """Every module of backbone and text encoders, by all its names.

  A file's module may be several of the model: queries, keys and values in one
  matrix. No two modules share a name. kohya's names have underscores for dots
  too, so names of files are not parsed but looked up among these.
  """
  latents = loaded.model.first_stage.latent_channels
  found: dict[str, Modules] = {}
  for starts, path, names in networks(loaded):
    for name, module in _by_module(path, names, latents).items():
      for spelling in _spellings(name, starts):
        found.setdefault(spelling, module)
        assert paths(found[spelling]) == paths(module), spelling
  return found


def paths(modules: Modules) -> tuple[tuple[str, ...], ...]:
  """The parameters' paths: the same for one module under all its names."""
  return tuple(
    target.path for module in modules for target in module if target is not None
  )


def _by_module(
  path: tuple[str, ...], names: Table, latents: int
) -> dict[str, Modules]:
  """The modules of a network, by their names in a file."""
  found: dict[str, dict[int, Module]] = {}
  for row in names.rows:
    name, _, leaf = row.foreign_name.rpartition(".")
    if leaf not in Module._fields:
      continue
    inputs = latents if row.path == "conv_in/kernel" else None
    target = Target((*path, *row.path.split("/")), row, inputs)
    parts, index = found.setdefault(name, {}), row.part and row.part.index
    parts[index] = parts.get(index, Module())._replace(**{leaf: target})
  return {name: tuple(parts.values()) for name, parts in found.items()}


def networks(
  loaded: LoadedModel, schemes: Sequence[str] = ("diffusers", "compvis")
) -> Iterator[tuple[Sequence[str], tuple[str, ...], Table]]:
  """(prefixes of module names, path, name table) of every network.

  Raises:
    ConfigError: LoRA files have no names for the backbone.
  """
  kind = type(loaded.model.unet)
  if kind in _TRANSFORMERS:
    found = shapes(loaded.params.unet["params"])
    for scheme in schemes:
      names = name_table(_TRANSFORMERS[kind], scheme, found)
      yield _TRANSFORMER, ("unet", "params"), names
  elif issubclass(kind, UNet):
    yield from _unet(loaded, schemes)
  else:
    needed = ", ".join(each.__name__ for each in (UNet, *_TRANSFORMERS))
    raise ConfigError(
      f"LoRA files have no names for a backbone of class {kind.__name__}; "
      f"needed is one of {needed}"
    )
  for conditioner in loaded.model.conditioners:
    if isinstance(conditioner, ClipEmbedder):
      yield from _text_encoders(loaded, conditioner)
    elif isinstance(conditioner, T5Embedder):
      key = conditioner.input_key
      path = ("conditioners", key, "params", "encoder")
      params = loaded.params.conditioners[key]["params"]["encoder"]
      starts = [f"{text_encoder_folders(loaded.model)[-1]}.", *_T5]
      yield starts, path, name_table("t5", "diffusers", shapes(params))


def _unet(loaded: LoadedModel, schemes: Sequence[str]):
  unet, params = loaded.model.unet, loaded.params.unet["params"]
  vectors = {"mlp": ("add_embedding", "class_embedding")}
  for vector in vectors.get(unet.vector, ("add_embedding",)):
    heads = Geometry(unet.attention.heads, unet.attention.head_width, vector)
    for scheme in schemes:
      names = name_table("unet", scheme, shapes(params), heads)
      yield _UNET, ("unet", "params"), names


def _text_encoders(loaded: LoadedModel, embedder: ClipEmbedder):
  """As `networks`; kohya numbers the text encoders where there are several.

  Trainers of SDXL number SD 1's too: lora_te1_.
  """
  key, has_t5 = embedder.input_key, loaded.model.find_conditioner(T5Embedder)
  encoders = split_variables(embedder, loaded.params.conditioners[key])
  for i, (_, variables) in enumerate(encoders):
    name = text_encoder_folders(loaded.model)[i]
    number = 2 if name == "text_encoder_2" else 1
    kohya = [f"lora_te{number}_"]
    if number * len(encoders) == 1:
      kohya.insert(1 if has_t5 else 0, "lora_te_")
    comfy = (f"text_encoders.{clip}" for clip in _COMFYUI[name])
    starts = [
      f"{name}.",
      *kohya,
      *(f"{c}{end}" for c in comfy for end in (".", ".transformer.")),
    ]
    starts += [f"{s}text_model{s[-1]}" for s in starts]
    if len(encoders) == 1:  # peft's own folder of the encoder alone
      starts.append("text_model.")
    names = name_table("clip", "diffusers", shapes(variables["params"]))
    path = ("conditioners", key, "params", f"encoders_{i}")
    yield starts, path, names


def _spellings(module: str, starts: Sequence[str]) -> Iterator[str]:
  """A module's names: with dots, diffusers' older ones, and kohya's."""
  names = [module]
  if module.endswith(".to_out.0"):
    names.append(module.removesuffix(".0"))
  older = [
    module.removesuffix(end) + old
    for end, old in _PROCESSORS.items()
    if module.endswith(end)
  ]
  for start in starts:
    if start.endswith("_"):
      yield from (start + name.replace(".", "_") for name in names)
    else:
      yield from (start + name for name in (*names, *older))
