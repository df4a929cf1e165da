"""Config trees as JSON, and the classes that may be instantiated from it.

A node's JSON names its class: one of this package by its name alone, a
user-defined class as "package.module:Class". Reading imports a foreign class
only if its top-level package is trusted.
"""

import dataclasses
import importlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax import config_tree
from ldm_jax.errors import ConfigError
from ldm_jax.fields.checks import annotation, check_field, fields, is_nodes

# The classes of this package that a config may hold, by module.
_MODULES = {
  "config": ("Experiment", "Data", "Reports", "PerceptualWeights"),
  "runtime.devices.sharding": ("MeshShape",),
  "runtime.checkpointing.policy": ("CheckpointPolicy",),
  "runtime.monitoring.trackers": ("TensorBoard",),
  "runtime.monitoring.wandb_tracker": ("Trackio", "Wandb"),
  "runtime.monitoring.mlflow_tracker": ("MLflow",),
  "runtime.optimizer": ("Optimizer",),
  "data.glyphs.source": ("Glyphs",),
  "data.sources.folder": ("Folder",),
  "data.sources.hf_dataset": ("HfDataset",),
  "data.sources.mds_source": ("MdsSource",),
  "data.sources.tfds_source": ("TfdsSource",),
  "data.sources.shards": ("Shards",),
  "data.sources.mix": ("Mix",),
  "data.sources.neighbours": ("Neighbours",),
  "data.transforms.augment": ("Augment",),
  "data.transforms.masks": ("Masks",),
  "data.transforms.layout_tokens": ("LayoutTokens",),
  "data.transforms.degradation": ("Degradation",),
  "data.text.tokenizers": ("TokenizerConfig",),
  "training.autoencoder": ("AutoencoderTask",),
  "training.first_stage.reconstruction_loss": ("WeightSchedule",),
  "training.distillation": ("DistillationTask",),
  "training.first_stage.equivariance": ("EquivarianceRegularizer",),
  "training.first_stage.feature_alignment": ("FeatureAlignment",),
  "training.denoiser": ("DenoiserTask",),
  "training.classifier": ("ClassifierTask",),
  "diffusion.loss": ("DenoisingLoss",),
  "diffusion.schedule": ("Schedule",),
  "diffusion.shift": ("DynamicShift", "ResolutionShift"),
  "diffusion.time_densities": (
    "CosMapTimes",
    "LogitNormalTimes",
    "ModeTimes",
    "UniformTimes",
  ),
  "latent_diffusion": ("LatentDiffusion",),
  "nn.autoencoder": ("Autoencoder", "PixelSpace"),
  "nn.conv_stack.networks": ("ConvStack",),
  "nn.deep_compression.autoencoder": ("DCAutoencoder",),
  "nn.deep_compression.levels": ("DCLevel", "DCStack"),
  "nn.bottleneck": ("GaussianBottleneck", "VectorQuantizer"),
  "nn.inpainting_decoder": ("InpaintingAutoencoder",),
  "nn.latent_normalization": ("BatchStatistics", "LatentNormalization"),
  "nn.tiny_autoencoder": ("TinyAutoencoder",),
  "nn.unet": ("UNet",),
  "nn.dit.dit": ("DiT",),
  "nn.mmdit.mmdit": ("MMDiT",),
  "nn.flux.flux": ("Flux",),
  "nn.transformer": ("AttentionPlan",),
  "nn.encoder_unet": ("EncoderUNet",),
  "nn.lora": ("LoRA",),
  "nn.discriminator": ("PatchDiscriminator",),
  "nn.encoders.lpips": ("LPIPS",),
  "nn.encoders.dinov2": ("DinoV2",),
  "nn.encoders.text_encoder": ("TextEncoder",),
  "nn.encoders.clip_text": ("ClipText",),
  "nn.encoders.t5": ("T5Encoder",),
  "nn.conditioners.clip_embedder": ("ClipEmbedder",),
  "nn.conditioners.t5_embedder": ("T5Embedder",),
  "nn.conditioners.embedders": (
    "ClassEmbedder",
    "LayoutEmbedder",
    "SizeEmbedder",
    "TextEmbedder",
  ),
  "nn.conditioners.source_image": ("SourceImage",),
  "nn.conditioners.spatial": (
    "DepthMap",
    "LowResolution",
    "MaskedImage",
    "NeighbourEmbeddings",
    "SegmentationEmbedder",
  ),
}
CLASSES = {
  name: f"ldm_jax.{module}:{name}"
  for module, names in _MODULES.items()
  for name in names
}


def class_name(kind: type) -> str:
  """How JSON names a class: "UNet", or "package.module:Class"."""
  full = f"{kind.__module__}:{kind.__qualname__}"
  return kind.__name__ if CLASSES.get(kind.__name__) == full else full


def find_class(name: str, path: str, trust: Collection[str] = ()) -> type:
  """The dataclass of a name that `class_name` gives.

  Args:
    path: of the node, for errors.
    trust: top-level packages that may be imported; "*" for all.

  Raises:
    ConfigError: there is none, or its package is not trusted.
  """
  full = CLASSES.get(name, name)
  module, colon, inside = full.partition(":")
  if not colon:
    raise ConfigError(
      f"{path}: class {name!r} is none of {', '.join(CLASSES)}; a class of "
      "another package is named package.module:Class"
    )
  package = module.partition(".")[0]
  if name not in CLASSES and not {package, "*"} & set(trust):
    raise ConfigError(
      f"{path}: class {name!r} is of the package {package!r}, which is only "
      f"imported if you trust it: --trust {package}"
    )
  try:
    found = importlib.import_module(module)
    for part in inside.split("."):
      found = getattr(found, part)
  except (ImportError, AttributeError, ValueError) as error:
    raise ConfigError(f"{path}: class {name!r}: {error}") from error
  if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
    raise ConfigError(f"{path}: {name!r} is not a dataclass")
  return found


def foreign_classes(node: Any) -> Iterator[tuple[type, str]]:
  """Classes outside this package in a tree, each with the path of a node."""

  def walk(node: Any, path: str) -> Iterator[tuple[type, str]]:
    if isinstance(node, tuple):
      for i, item in enumerate(node):
        yield from walk(item, f"{path}.{i}")
    elif dataclasses.is_dataclass(node):
      if ":" in class_name(type(node)):
        yield type(node), path
      for field in fields(node):
        yield from walk(getattr(node, field.name), f"{path}.{field.name}")

  return walk(node, "config")


def check_importable(node: Any) -> None:
  """Raises ConfigError if a class in a tree cannot be imported by its name."""
  for kind, path in foreign_classes(node):
    is_file = kind.__module__ in ("__main__", "<run_path>", "builtins")
    if is_file or "<locals>" in kind.__qualname__:
      raise ConfigError(
        f"{path}: class {kind.__qualname__} is defined in the config file or "
        "script itself, so a saved run could not be read back; move it to the "
        "top level of an importable module of your own"
      )


def to_json(node: Any) -> Any:
  """A tree of JSON values; every node names its class.

  Raises:
    TypeError: a value that is no JSON: write tuples for lists.
  """
  if dataclasses.is_dataclass(node) and not isinstance(node, type):
    values = {
      f.name: jnp.dtype(getattr(node, f.name)).name
      if annotation(type(node), f) == DTypeLike
      else to_json(getattr(node, f.name))
      for f in fields(node)
    }
    return {"class": class_name(type(node))} | values
  if isinstance(node, tuple):
    return [to_json(item) for item in node]
  if node is None or isinstance(node, str | int | float | bool):
    return node
  raise TypeError(f"a config cannot hold {node!r}")


def from_json(
  tree: Any, path: str = "config", trust: Collection[str] = ()
) -> Any:
  """The inverse of `to_json`.

  Raises:
    ConfigError: an unknown class or field, a value of the wrong type, or a
      class of a package that is not trusted.
  """
  if isinstance(tree, list):
    return tuple(
      from_json(item, f"{path}.{i}", trust) for i, item in enumerate(tree)
    )
  if not isinstance(tree, Mapping):
    return tree
  kind = find_class(str(tree.get("class")), path, trust)
  values = {}
  for name, item in tree.items():
    if name == "class":
      continue
    here = f"{path}.{name}"
    field = config_tree.field_of(kind, name, here)
    value = from_json(item, here, trust)
    values[name] = check_field(kind, field, value, here)
  try:
    return kind(**values)
  except (TypeError, ValueError) as error:
    raise ConfigError(f"{path}: {error}") from error


def differences(ours: Any, theirs: Any, path: str = "config") -> list[str]:
  """Dotted paths at which two configs differ, with both values."""
  if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
    return [
      line
      for f in fields(ours)
      for line in differences(
        _value(ours, f), _value(theirs, f), f"{path}.{f.name}"
      )
    ]
  if is_nodes(ours) and is_nodes(theirs) and len(ours) == len(theirs):
    return [
      line
      for i, (our, their) in enumerate(zip(ours, theirs, strict=True))
      for line in differences(our, their, f"{path}.{i}")
    ]
  same = _plain(ours) == _plain(theirs)
  return [] if same else [f"{path}: {ours!r} is not {theirs!r}"]


def _value(node: Any, field: dataclasses.Field) -> Any:
  value = getattr(node, field.name)
  is_dtype = annotation(type(node), field) == DTypeLike
  return jnp.dtype(value).name if is_dtype else value


def _plain(value: Any) -> str:
  """JSON text in which 1 and 1.0 are the same."""

  def whole(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
      return [whole(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value

  return json.dumps(whole(to_json(value)))
