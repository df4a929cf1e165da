"""Reads one published network into a Flax module and its parameters."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.deep_compression.autoencoder import DCAutoencoder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs import (
  text_encoder_config,
  unet_reader,
)
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder
from ldm_jax.pretrained.configs.dc_autoencoder_config import (
  DC,
  dc_autoencoder,
)
from ldm_jax.pretrained.configs.defaults import ASYMMETRIC, FLUX2, KL, VQ
from ldm_jax.pretrained.configs.strict_config import refusal
from ldm_jax.pretrained.configs.tiny_autoencoder_config import (
  TINY,
  tiny_autoencoder,
)
from ldm_jax.pretrained.configs.value_types import malformed_values
from ldm_jax.pretrained.dit import dit_config
from ldm_jax.pretrained.flux import flux_config
from ldm_jax.pretrained.mmdit import mmdit_config
from ldm_jax.pretrained.single_network.batch_statistics import read_statistics
from ldm_jax.pretrained.single_network.initial_shapes import abstract
from ldm_jax.pretrained.text import t5_config
from ldm_jax.weights import mmap_files
from ldm_jax.weights.naming import convert, parameter_names
from ldm_jax.weights.naming.convert_lazily import convert_lazily

Module = (
  UNet
  | DiT
  | MMDiT
  | Flux
  | Autoencoder
  | TinyAutoencoder
  | DCAutoencoder
  | ClipText
  | T5Encoder
  | ClipVision
  | DinoV2
  | TextEncoder
  | ClassEmbedder
)
Config = Mapping[str, Any]

# Kind and builder of the module, by the class that a config.json names.
_BUILDERS = {
  "UNet2DConditionModel": ("unet", unet_reader.unet),
  "UNet2DModel": ("unet", unet_reader.unet),
  "ControlNetModel": ("unet", unet_reader.controlnet),
  **dict.fromkeys(
    (dit_config.DIT.kind, dit_config.FIRST_KIND), ("dit", dit_config.dit)
  ),
  dit_config.LABELS: ("dit_labels", dit_config.labels),
  mmdit_config.SD3.kind: ("mmdit", mmdit_config.mmdit),
  flux_config.FLUX.kind: ("flux", flux_config.flux),
  **dict.fromkeys(
    [schema.kind for schema in (KL, FLUX2, ASYMMETRIC, VQ)],
    ("autoencoder", lambda config: autoencoder(config)[0]),
  ),
  TINY.kind: ("tiny_autoencoder", lambda config: tiny_autoencoder(config)[0]),
  DC.kind: ("dc_autoencoder", lambda config: dc_autoencoder(config)[0]),
  "CLIPTextModel": ("clip", text_encoder_config.clip),
  "CLIPTextModelWithProjection": ("clip", text_encoder_config.clip),
  **dict.fromkeys(
    ("CLIPVisionModelWithProjection", "CLIPModel"),
    ("clip_vision", text_encoder_config.clip_vision),
  ),
  **dict.fromkeys(
    text_encoder_config.DINOV2, ("dinov2", text_encoder_config.dinov2)
  ),
  **dict.fromkeys(t5_config.KINDS, ("t5", t5_config.t5)),
  "LDMBertModel": ("text", text_encoder_config.text),
  "ClassEmbedder": ("classes", text_encoder_config.classes),
}


# Of a config.json that names no class.
_BY_MODEL_TYPE = {"clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}


@dataclasses.dataclass(frozen=True)
class ForeignNetwork:
  """A network in a file, of which no tensor is read yet.

  Attributes:
    config: what its config.json holds, or would hold.
    tensors: by the scheme's names, without a prefix.
    kind, scheme: see `weights.naming.parameter_names.name_table`.
    path: of the file, or of the folder of several, for errors.
  """

  config: Config
  tensors: Mapping[str, np.ndarray]
  kind: str
  scheme: str
  path: str = ""


def class_of(config: Config) -> str:
  """The class that a config.json names, without the prefix "Flax".

  Raises:
    ConfigError: it names none that is supported.
  """
  listed = config.get("architectures") or []
  if not isinstance(listed, list | tuple):
    raise refusal("config.json", "architectures", listed, "a list of classes")
  listed = [config.get("_class_name"), *listed]
  if not any(listed):
    listed = [_BY_MODEL_TYPE.get(config.get("model_type"))]
  kinds = [str(name).removeprefix("Flax") for name in listed if name]
  for kind in kinds:
    if kind in _BUILDERS:
      return kind
  raise ConfigError(
    f"config.json is of {kinds or 'no class'}; expected one of "
    f"{', '.join(_BUILDERS)}"
  )


def kind_of(config: Config) -> str:
  """The kind of network of a config.json, as name tables call it.

  Raises:
    ConfigError: as `class_of`.
  """
  return _BUILDERS[class_of(config)][0]


def build(config: Config, dtype: DTypeLike = "float32") -> Module:
  """The module of a config.json, which computes in `dtype`.

  Raises:
    ConfigError: it asks for something that is not supported.
  """
  kind = class_of(config)
  with malformed_values(f"the config of a {kind}"):
    module = _BUILDERS[kind][1](config)
  return with_dtype(module, dtype)


def latent_scale(config: Config) -> float:
  """The factor of an autoencoder's latents, by its config.

  Raises:
    ConfigError: as `build`.
  """
  kind = class_of(config)
  readers = {TINY.kind: tiny_autoencoder, DC.kind: dc_autoencoder}
  read = readers.get(kind, autoencoder)
  with malformed_values(f"the config of a {kind}"):
    return float(read(config)[1])


def with_dtype(module: Module, dtype: DTypeLike) -> Module:
  """The same module, computing in `dtype`."""
  name = jnp.dtype(dtype).name
  if isinstance(module, Autoencoder):
    cast = lambda trunk: trunk and dataclasses.replace(trunk, dtype=name)
    return module.clone(
      trunk=cast(module.trunk), decoder_trunk=cast(module.decoder_trunk)
    )
  if isinstance(module, ClassEmbedder):
    return module
  return module.clone(dtype=name)


def load(
  network: ForeignNetwork,
  dtype: DTypeLike = "float32",
  store: Callable[[str, np.ndarray], Any] = lambda path, array: None,
) -> tuple[Module, dict[str, Any]]:
  """The module and its variables; each parameter is cast as it is read.

  Args:
    store: (path, array) -> what is kept of a parameter in another format, or
      None.

  Raises:
    ConfigError: the config asks for something that is not supported.
    WeightsError: the tensors do not fit the config.
  """
  module = build(network.config, dtype)
  table = table_of(module, network)
  module, tensors = _own_tensors(module, network)

  def place(path: str, array: np.ndarray) -> Any:
    _check_floats(path, array.dtype)
    kept = store(path, array)
    # A copy: the file may be deleted, and its pages are released.
    copy = np.array(array, jnp.dtype(dtype), order="C") if kept is None else 0
    mmap_files.release_pages(array)
    return jnp.asarray(copy) if kept is None else kept

  with _named(network):
    return module, {"params": convert.convert(table, tensors, place=place)}


def load_lazily(network: ForeignNetwork) -> tuple[Module, dict[str, Any]]:
  """The module and its variables as `LazyTensor`s, for writing them elsewhere.

  Raises:
    ConfigError: the config asks for something that is not supported.
    WeightsError: the names of the tensors do not fit the config.
  """
  module, tensors = _own_tensors(build(network.config), network)
  table = table_of(module, network)
  for name in {row.foreign_name for row in table.rows} & set(tensors):
    _check_floats(name, tensors[name].dtype)
  read = functools.partial(_read_row, network)
  params = convert_lazily(table, tensors, read)
  return module, {"params": params}


def _own_tensors(
  module: Module, network: ForeignNetwork
) -> tuple[Module, Mapping[str, np.ndarray]]:
  """The module with what tensors configure, and those of its parameters."""
  with _named(network):
    module, tensors = read_statistics(module, network.tensors)
  is_own = network.kind in ("unet", "autoencoder")  # others have such names
  if network.scheme == "diffusers" and is_own:
    tensors = parameter_names.modern_names(tensors)
  return module, tensors


def _read_row(
  network: ForeignNetwork, row: convert.Row, tensors: Mapping[str, np.ndarray]
) -> np.ndarray:
  with _named(network):
    return convert.read_row(row, tensors)


def _named(network: ForeignNetwork):
  """A context whose errors name the network's file."""
  if network.path:
    return mmap_files.error_context(network.path)
  return contextlib.nullcontext()


def _check_floats(name: str, dtype: np.dtype) -> None:
  """Raises WeightsError for a dtype that is no floating-point number's."""
  # Other libraries' formats (bfloat16, 8-bit floats) are of kind V or f.
  if dtype.kind not in "fV":
    raise WeightsError(
      f"{name} holds {dtype}; needed are floating-point numbers, and quantised "
      "weights are not read: save the model in float16"
    )


def table_of(module: Module, network: ForeignNetwork) -> convert.Table:
  """The names and layouts of a network's parameters in its file."""
  shapes = convert.shapes(abstract(module, network.config)["params"])
  return parameter_names.name_table(
    network.kind, network.scheme, shapes, geometry(module, network.config)
  )


def geometry(module: Module, config: Config) -> parameter_names.Geometry:
  """The head counts and so on that names depend on."""
  if not isinstance(module, UNet):
    return parameter_names.Geometry()
  is_added = config.get("addition_embed_type") is not None
  return parameter_names.Geometry(
    module.attention.heads,
    module.attention.head_width,
    "add_embedding" if is_added else "class_embedding",
  )
