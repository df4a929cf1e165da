"""The networks of a diffusers folder or a single file, before any is read."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.pretrained.networks import Config, Foreign, network_of
from ldm_jax.pretrained.single_file.detect import detect
from ldm_jax.pretrained.single_file.submodules import Given
from ldm_jax.weights import folders
from ldm_jax.weights.files import read_global_step, read_tensors

# Names that pipelines of LDM have for parts that all models have.
ALIASES = {"vqvae": "vae", "bert": "text_encoder"}
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_EMA = "model_ema."
_UNET = "model.diffusion_model."


@dataclasses.dataclass(frozen=True)
class Components:
  """What a model is put together from.

  Attributes:
    networks: by what a folder calls them; a lone network has one entry.
    scheduler: what scheduler_config.json says, or None without one.
    low_res_scheduler: the same of an upscaler's small image.
    index: what model_index.json says.
    tokenizers: folders, by the text encoder they belong to.
    family: a key of families.FAMILIES if a single file told it.
    notices: lines for the user.
  """

  networks: Mapping[str, Foreign]
  scheduler: Config | None = None
  index: Config = dataclasses.field(default_factory=dict)
  tokenizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  family: str | None = None
  notices: tuple[str, ...] = ()
  low_res_scheduler: Config | None = None

  @property
  def lone(self) -> Foreign | None:
    """The network, if there is just one."""
    return (
      next(iter(self.networks.values())) if len(self.networks) == 1 else None
    )


def open_folder(folder: str, variant: str | None = None) -> Components:
  """A whole pipeline's folder, or one network's.

  Parts that compute nothing we do (safety checkers, feature extractors) are
  left where they are.

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
    foreign = open_network(folder, variant)
    kinds = {"autoencoder": "vae", "unet": "unet"}
    name = kinds.get(foreign.network, "text_encoder")
    return Components({name: foreign})
  index = read_json(path / "model_index.json")
  names = {
    ALIASES.get(name, name): name for name in index if _is_there(index, name)
  }
  return Components(
    {
      name: open_network(str(path / names[name]), variant)
      for name in NETWORKS
      if name in names
    },
    _scheduler(path, names, "scheduler"),
    index,
    {
      encoder: str(path / names[name])
      for encoder, name in TOKENIZERS.items()
      if name in names
    },
    low_res_scheduler=_scheduler(path, names, "low_res_scheduler"),
  )


def _scheduler(
  path: pathlib.Path, names: Mapping[str, str], name: str
) -> Config | None:
  if name not in names:
    return None
  return read_json(path / name / "scheduler_config.json")


def _is_there(index: Config, name: str) -> bool:
  """Whether model_index.json lists a part; [null, null] is an absent one."""
  value = index[name]
  return isinstance(value, list) and len(value) == 2 and value[1] is not None


def open_network(
  folder: str, variant: str | None = None, config: Config | None = None
) -> Foreign:
  """One network's folder: config.json and weights.

  Args:
    config: in place of config.json, where the folder holds several networks.

  Raises:
    ConfigError: config.json is missing, malformed, or of no class we have.
    WeightsError: there are no weights, or they are malformed.
  """
  if config is None:
    config = read_json(pathlib.Path(folder) / "config.json")
  network = network_of(config)
  is_text = network in ("clip", "clip_vision", "text")
  stems = folders.TRANSFORMERS if is_text else folders.DIFFUSERS
  if network == "text":
    stems += folders.DIFFUSERS
  found = folders.find_weights(folder, stems, variant=variant)
  tensors = folders.read_folder(folder, stems, variant=variant)
  is_flax = found.files[0].suffix == ".msgpack"
  prefixes = {"clip": "text_model", "clip_vision": "vision_model"}
  if network in prefixes:
    prefix = prefixes[network] + ("/" if is_flax else ".")
    tensors = without_prefix(tensors, prefix)
  return Foreign(config, tensors, network, "flax" if is_flax else "diffusers")


def open_file(
  path: str,
  *,
  prediction: Prediction | None = None,
  config: Mapping[str, Given] | None = None,
  is_averaged: bool = False,
) -> Components:
  """A single file, its family told by its tensors.

  Args:
    prediction: what the U-Net answers, if the caller knows.
    config: by a part's name: what its config.json says.
    is_averaged: take the U-Net's moving average, where the file has both.

  Raises:
    WeightsError: it is unreadable or nothing that we know.
  """
  tensors = read_tensors(path)
  if is_averaged:
    tensors = averaged(tensors)
  found = detect(
    {name: tuple(np.shape(tensors[name])) for name in tensors},
    read=tensors.__getitem__,
    global_step=read_global_step(path),
    prediction=prediction,
    config=config,
  )
  parts = [part for part in (found.unet, found.vae, *found.texts) if part]
  return Components(
    {
      part.name: Foreign(
        part.config,
        within(tensors, part.prefix),
        part.network,
        "compvis",
      )
      for part in parts
    },
    found.scheduler,
    family=found.family,
    notices=found.notices,
  )


def averaged(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """The file with its U-Net's moving average in the U-Net's place.

  An average's name is its parameter's without the dots.

  Raises:
    WeightsError: the file has no average.
  """
  flat = {
    _EMA + name.removeprefix("model.").replace(".", ""): name
    for name in tensors
    if name.startswith(_UNET)
  }
  found = {flat[name]: tensors[name] for name in tensors if name in flat}
  if not found or len(found) < len(flat):
    raise WeightsError(
      f"the file has {len(found)} averages for {len(flat)} parameters of its "
      "U-Net; load it as it is"
    )
  return {**{name: tensors[name] for name in tensors}, **found}


def without_prefix(
  tensors: Mapping[str, np.ndarray], prefix: str
) -> Mapping[str, np.ndarray]:
  """Tensors by their names less a prefix that only some may have."""
  return Renamed(tensors, {name.removeprefix(prefix): name for name in tensors})


def within(
  tensors: Mapping[str, np.ndarray], prefix: str
) -> Mapping[str, np.ndarray]:
  """Those that begin with a prefix, by the rest of their names."""
  return Renamed(
    tensors,
    {n.removeprefix(prefix): n for n in tensors if n.startswith(prefix)},
  )


class Renamed(Mapping):
  """A view of tensors under other names; none is read before it is asked."""

  def __init__(
    self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
  ):
    self._tensors, self._names = tensors, names

  def __getitem__(self, name):
    return self._tensors[self._names[name]]

  def __iter__(self):
    return iter(self._names)

  def __len__(self):
    return len(self._names)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    ConfigError: the file is missing or holds something else.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ConfigError(f"there is no {path}") from None
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path} is unreadable: {error}") from error
  if not isinstance(value, dict):
    raise ConfigError(f"{path} holds a {type(value).__name__}, not an object")
  return value
