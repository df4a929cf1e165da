"""One foreign network: read into a module of ours and its parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs import text_encoder_config, unet_reader
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder
from ldm_jax.weights import mmap_files
from ldm_jax.weights.naming import convert, parameter_names

Module = (
  UNet | Autoencoder | ClipText | ClipVision | TextEncoder | ClassEmbedder
)
Config = Mapping[str, Any]

# Which of ours a config speaks of, by its class's name.
_BUILDERS = {
  "UNet2DConditionModel": ("unet", unet_reader.unet),
  "UNet2DModel": ("unet", unet_reader.unet),
  "ControlNetModel": ("unet", unet_reader.controlnet),
  "AutoencoderKL": ("autoencoder", lambda config: autoencoder(config)[0]),
  "VQModel": ("autoencoder", lambda config: autoencoder(config)[0]),
  "CLIPTextModel": ("clip", text_encoder_config.clip),
  "CLIPTextModelWithProjection": ("clip", text_encoder_config.clip),
  "CLIPVisionModelWithProjection": (
    "clip_vision",
    text_encoder_config.clip_vision,
  ),
  "CLIPModel": ("clip_vision", text_encoder_config.clip_vision),
  "LDMBertModel": ("text", text_encoder_config.text),
  "ClassEmbedder": ("classes", text_encoder_config.classes),
}


@dataclasses.dataclass(frozen=True)
class Foreign:
  """A network as it lies in a file, nothing of it read yet.

  Attributes:
    config: what its config.json holds, or would hold.
    tensors: by the scheme's names, without a prefix.
    network, scheme: as weights/names.py has them.
  """

  config: Config
  tensors: Mapping[str, np.ndarray]
  network: str
  scheme: str


def class_of(config: Config) -> str:
  """The class a config.json names, less the prefix Flax of old.

  Raises:
    ConfigError: it names none that we have.
  """
  listed = [config.get("_class_name"), *(config.get("architectures") or ())]
  if not any(listed) and config.get("model_type") == "clip_text_model":
    return "CLIPTextModel"
  kinds = [str(name).removeprefix("Flax") for name in listed if name]
  for kind in kinds:
    if kind in _BUILDERS:
      return kind
  raise ConfigError(
    f"config.json is of {kinds or 'no class'}; needed is one of "
    f"{', '.join(_BUILDERS)}"
  )


def network_of(config: Config) -> str:
  """What weights/names.py calls the network of a config.json.

  Raises:
    ConfigError: as `class_of`.
  """
  return _BUILDERS[class_of(config)][0]


def build(config: Config, dtype: DTypeLike = "float32") -> Module:
  """The module of a config.json, which computes in `dtype`.

  Raises:
    ConfigError: it asks for what we do not have.
  """
  return computing(_BUILDERS[class_of(config)][1](config), dtype)


def computing(module: Module, dtype: DTypeLike) -> Module:
  """The same module, in another format of computation."""
  name = jnp.dtype(dtype).name
  if isinstance(module, Autoencoder):
    return module.clone(trunk=dataclasses.replace(module.trunk, dtype=name))
  if isinstance(module, ClassEmbedder):
    return module
  return module.clone(dtype=name)


def load(
  foreign: Foreign, dtype: DTypeLike = "float32"
) -> tuple[Module, dict[str, Any]]:
  """The module and its variables, each parameter cast and placed as it comes.

  Raises:
    ConfigError: the config asks for what we do not have.
    WeightsError: the tensors are not those of the config's network.
  """
  module = build(foreign.config, dtype)
  table = table_of(module, foreign)
  tensors = foreign.tensors
  if foreign.scheme == "diffusers":
    tensors = parameter_names.modern_names(tensors)

  def place(path: str, array: np.ndarray) -> jax.Array:
    if not np.issubdtype(array.dtype, np.number) and array.dtype.kind != "V":
      raise WeightsError(f"{path} holds {array.dtype}; numbers are needed")
    # A copy of its own: the file may go away, and its pages are let go.
    copy = np.array(array, jnp.dtype(dtype), order="C")
    mmap_files.release_pages(array)
    return jnp.asarray(copy)

  return module, {"params": convert.convert(table, tensors, place=place)}


def table_of(module: Module, foreign: Foreign) -> convert.Table:
  """The table of names between a module and its foreign form."""
  shapes = convert.shapes(abstract(module, foreign.config)["params"])
  return parameter_names.name_table(
    foreign.network, foreign.scheme, shapes, geometry(module, foreign.config)
  )


def geometry(module: Module, config: Config) -> parameter_names.Geometry:
  """What names need beside paths and shapes."""
  if not isinstance(module, UNet):
    return parameter_names.Geometry()
  is_added = config.get("addition_embed_type") is not None
  return parameter_names.Geometry(
    module.attention.heads,
    module.attention.head_width,
    "add_embedding" if is_added else "class_embedding",
  )


def abstract(module: Module, config: Config) -> dict[str, Any]:
  """Shapes of the module's variables."""
  key = jax.random.key(0)
  return jax.eval_shape(lambda: _init(module, config, key))


def _init(module: nn.Module, config: Config, key: jax.Array) -> Any:
  tokens = jnp.zeros((1, 1), jnp.int32)
  if isinstance(module, ClassEmbedder):
    return module.init(key, tokens[0], jnp.zeros((1,), bool))
  if isinstance(module, ClipVision):
    return module.init(key, jnp.zeros((1, module.size, module.size, 3)))
  if isinstance(module, Autoencoder):
    side = module.stride
    shape = (1, *module.latent_shape(side, side))
    return module.init(key, jnp.zeros((1, side, side, 3)), jnp.zeros(shape))
  if not isinstance(module, UNet):
    return module.init(key, tokens)
  fed = unet_reader.inputs(config)
  side = 2 ** (len(module.multipliers) - 1)
  told = Condition(
    context=None if fed.context is None else jnp.zeros((1, 1, fed.context)),
    vector=None if fed.vector is None else jnp.zeros((1, fed.vector)),
  )
  latents = jnp.zeros((1, side, side, fed.channels))
  if isinstance(module, ControlNet):
    side *= 2 ** (len(module.hint_channels) - 1)
    hint = jnp.zeros((1, side, side, 3))
    return module.init(key, latents, jnp.zeros((1,)), told, hint)
  return module.init(key, latents, jnp.zeros((1,)), told)
