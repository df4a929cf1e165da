"""Finds the networks of a diffusers folder or a single file."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.files.strict_json import read_object
from ldm_jax.pretrained.configs.index_keys import unread_keys
from ldm_jax.pretrained.configs.scheduler_config import PREDICTIONS
from ldm_jax.pretrained.dit.released_file import released_dit
from ldm_jax.pretrained.dit.tensors import with_labels
from ldm_jax.pretrained.networks import Config, ForeignNetwork, kind_of
from ldm_jax.pretrained.single_file.detect import detect
from ldm_jax.pretrained.single_file.moving_average import averaged
from ldm_jax.pretrained.single_file.renamed_tensors import (
  Renamed,
  under_prefix,
  without_prefix,
)
from ldm_jax.pretrained.single_file.stored_configs import (
  StoredConfigs,
  read_stored,
)
from ldm_jax.pretrained.single_file.submodules import PartialConfig
from ldm_jax.pretrained.single_network.autoencoder_file import find_autoencoder
from ldm_jax.pretrained.single_network.batch_statistics import usual_names
from ldm_jax.pretrained.text.encoder_file import find_text_encoder
from ldm_jax.pretrained.text.transformers_names import own_tensors
from ldm_jax.weights import folders
from ldm_jax.weights.files import read_global_step, read_metadata, read_tensors
from ldm_jax.weights.scaled_tensors import scaled

# Names that LDM's pipelines have for components of all models.
ALIASES = {"vqvae": "vae", "bert": "text_encoder", "transformer": "unet"}
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = {
  "text_encoder": "tokenizer",
  "text_encoder_2": "tokenizer_2",
  "text_encoder_3": "tokenizer_3",
}


@dataclasses.dataclass(frozen=True)
class Components:
  """The networks and configs that a model consists of.

  Attributes:
    networks: by subfolder; a single network has one entry.
    scheduler: scheduler_config.json, or None without one.
    index: model_index.json.
    tokenizers: folders, by the text encoder they belong to.
    family: a key of families.FAMILIES, where detected from a single file.
    warnings: what was missing or guessed, a line each.
    low_res_scheduler: as `scheduler`, of an upscaler's low-resolution image.
    is_scale_unknown: whether the scale of the autoencoder's latents is a guess,
      since its file holds nothing else.
  """

  networks: Mapping[str, ForeignNetwork]
  scheduler: Config | None = None
  index: Config = dataclasses.field(default_factory=dict)
  tokenizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  family: str | None = None
  warnings: tuple[str, ...] = ()
  low_res_scheduler: Config | None = None
  is_scale_unknown: bool = False

  @property
  def single(self) -> ForeignNetwork | None:
    """The network, if there is only one."""
    return (
      next(iter(self.networks.values())) if len(self.networks) == 1 else None
    )


def open_folder(folder: str, variant: str | None = None) -> Components:
  """The folder of a pipeline, or of one network.

  Safety checkers and feature extractors are ignored.

  Raises:
    WeightsError: there is neither model_index.json nor config.json, or a
      network's weights are missing or malformed.
  """
  path = pathlib.Path(folder)
  if not (path / "model_index.json").is_file():
    if not (path / "config.json").is_file():
      raise WeightsError(
        f"{folder!r} has neither model_index.json (a pipeline) nor config.json "
        f"(one network); it has {', '.join(sorted(os.listdir(path))[:8])}"
      )
    network = open_network(folder, variant)
    subfolders = {
      "autoencoder": "vae",
      "tiny_autoencoder": "vae",
      "dc_autoencoder": "vae",
      "unet": "unet",
      "dit": "unet",
      "mmdit": "unet",
      "flux": "unet",
    }
    name = subfolders.get(network.kind, "text_encoder")
    return Components(with_labels({name: network}))
  index = read_json(path / "model_index.json")
  names = {
    ALIASES.get(name, name): name for name in index if _is_present(index, name)
  }
  networks = {
    name: open_network(str(path / names[name]), variant)
    for name in NETWORKS
    if name in names
  }
  return Components(
    with_labels(networks),
    _scheduler(path, names, "scheduler"),
    index,
    {
      encoder: str(path / names[name])
      for encoder, name in TOKENIZERS.items()
      if name in names
    },
    warnings=unread_keys(index),
    low_res_scheduler=_scheduler(path, names, "low_res_scheduler"),
  )


def _scheduler(
  path: pathlib.Path, names: Mapping[str, str], name: str
) -> Config | None:
  if name not in names:
    return None
  return read_json(path / name / "scheduler_config.json")


def _is_present(index: Config, name: str) -> bool:
  """Whether model_index.json has a component; [null, null] is an absent one."""
  value = index[name]
  return isinstance(value, list) and len(value) == 2 and value[1] is not None


def open_network(
  folder: str, variant: str | None = None, config: Config | None = None
) -> ForeignNetwork:
  """One network's folder: config.json and weights.

  Args:
    config: in place of config.json, where the folder holds several networks.

  Raises:
    ConfigError: config.json is missing, malformed, or of an unknown class.
    WeightsError: there are no weights, or they are malformed.
  """
  if config is None:
    config = read_json(pathlib.Path(folder) / "config.json")
  kind = kind_of(config)
  is_text = kind in ("clip", "t5", "clip_vision", "dinov2", "text")
  stems = folders.TRANSFORMERS if is_text else folders.DIFFUSERS
  if kind == "text":
    stems += folders.DIFFUSERS
  found = folders.find_weights(folder, stems, variant=variant)
  tensors = folders.read_folder(folder, stems, variant=variant)
  is_flax = found.files[0].suffix == ".msgpack"
  prefixes = {"clip": "text_model", "clip_vision": "vision_model"}
  if kind in prefixes:
    prefix = prefixes[kind] + ("/" if is_flax else ".")
    tensors = without_prefix(tensors, prefix)
  if kind == "t5":
    tensors = own_tensors(kind, tensors)
  scheme = "flax" if is_flax else "diffusers"
  files = found.files
  path = str(files[0] if len(files) == 1 else folder)
  return ForeignNetwork(config, tensors, kind, scheme, path)


def open_file(
  path: str,
  *,
  prediction: Prediction | None = None,
  config: Mapping[str, PartialConfig] | None = None,
  is_averaged: bool = False,
) -> Components:
  """A single file, whose family is detected from its tensors.

  Args:
    prediction: what the U-Net predicts, if the caller knows.
    config: keys of config.json, by a component's name.
    is_averaged: take the U-Net's moving average, where the file has both.

  Raises:
    WeightsError: it is unreadable or of no known family.
  """
  raw = read_tensors(path)
  raw = Renamed(raw, usual_names(raw))
  tensors = averaged(scaled(raw)) if is_averaged else scaled(raw)
  metadata = read_metadata(path)
  if (configs := read_stored(metadata)) is not None:
    return _stored_components(path, configs, tensors, config or {}, prediction)
  if (alone := find_autoencoder(path, tensors)) is not None:
    return _lone_autoencoder(path, alone, (config or {}).get("vae", {}))
  if (text := find_text_encoder(path, tensors, config or {})) is not None:
    return Components({"text_encoder": text}, family=text.kind)
  if (dit := released_dit(path, tensors, prediction, config or {})) is not None:
    networks = with_labels({"unet": dit.network})
    return Components(
      networks, dit.scheduler, family=dit.family, warnings=dit.warnings
    )
  found = detect(
    {name: tuple(np.shape(raw.get(name, ()))) for name in tensors},
    read=tensors.__getitem__,
    global_step=read_global_step(path),
    prediction=prediction,
    config=config,
    metadata=metadata,
  )
  submodules = [found.unet, found.vae, *found.text_encoders]
  return Components(
    {
      submodule.name: ForeignNetwork(
        submodule.config,
        own_tensors(submodule.kind, under_prefix(tensors, submodule.prefix)),
        submodule.kind,
        "compvis",
        path,
      )
      for submodule in submodules
      if submodule
    },
    found.scheduler,
    family=found.family,
    warnings=found.warnings,
    is_scale_unknown=found.family == "vae"
    and "scaling_factor" not in (config or {}).get("vae", {}),
  )


def _lone_autoencoder(
  path: str, network: ForeignNetwork, own: PartialConfig
) -> Components:
  """The autoencoder of a file of its own, with keys of the caller's."""
  config = dict(network.config) | dict(own)
  network = dataclasses.replace(network, config=config, path=path)
  is_scaled = network.kind in ("autoencoder", "dc_autoencoder")
  is_unknown = is_scaled and "scaling_factor" not in own
  return Components({"vae": network}, family="vae", is_scale_unknown=is_unknown)


def _stored_components(
  path: str,
  configs: StoredConfigs,
  tensors: Mapping[str, np.ndarray],
  overrides: Mapping[str, PartialConfig],
  prediction: Prediction | None,
) -> Components:
  """The networks of a file whose metadata has their configs."""
  scheduler = configs.scheduler
  if scheduler is not None:
    scheduler = dict(scheduler) | dict(overrides.get("scheduler", {}))
    names = {ours: name for name, ours in PREDICTIONS.items()}
    if prediction is not None:
      scheduler["prediction_type"] = names[prediction]
  return Components(
    {
      each.name: ForeignNetwork(
        each.config | dict(overrides.get(each.name, {})),
        own_tensors(each.kind, under_prefix(tensors, each.prefix)),
        each.kind,
        "compvis",
        path,
      )
      for each in configs.networks
    },
    scheduler,
    configs.index,
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; diffusers writes infinity into those of schedulers.

  Raises:
    ConfigError: the file is missing or holds something else.
  """
  try:
    return read_object(path, ConfigError, has_constants=True)
  except FileNotFoundError:
    raise ConfigError(f"there is no {path}") from None
