"""Configs in a single file's metadata, where its tensors do not show them.

Heads, groups, the scale of latents, another schedule than the family's and so
on are lost in a file of tensors alone. `stored` writes them only if detection
would give another model, so that the usual files stay as other tools write
them.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.errors import LdmJaxError, WeightsError
from ldm_jax.files.strict_json import parse_json
from ldm_jax.pretrained.configs import scheduler_config, unet_reader
from ldm_jax.pretrained.networks import build, latent_scale
from ldm_jax.pretrained.single_file.detect import detect
from ldm_jax.pretrained.single_file.submodules import Submodule
from ldm_jax.weights.lazy_tensors import LazyTensor

KEY = "ldm_jax.components"
_KINDS = (
  *("unet", "mmdit", "flux", "autoencoder", "dc_autoencoder"),
  *("clip", "open_clip", "t5", "text", "classes"),
)
_ZEROS = "force_zeros_for_empty_prompt"


class StoredConfigs(NamedTuple):
  """What a file says of its model.

  Attributes:
    networks: their names, kinds, prefixes and configs.
    scheduler: scheduler_config.json, or None for a single network.
    index: keys of model_index.json.
  """

  networks: tuple[Submodule, ...]
  scheduler: dict[str, Any] | None = None
  index: Mapping[str, Any] = {}


def stored(
  configs: StoredConfigs, tensors: Mapping[str, np.ndarray | LazyTensor]
) -> dict[str, str]:
  """The metadata of a file of these tensors; {} where they show everything."""
  if _is_detected(configs, tensors):
    return {}
  written = {
    "networks": {
      network.name: {
        "kind": network.kind,
        "prefix": network.prefix,
        "config": network.config,
      }
      for network in configs.networks
    },
    "scheduler": configs.scheduler,
    "index": dict(configs.index),
  }
  return {KEY: json.dumps(written, sort_keys=True)}


def _is_detected(
  configs: StoredConfigs, tensors: Mapping[str, np.ndarray | LazyTensor]
) -> bool:
  shapes = {name: tuple(np.shape(tensors[name])) for name in tensors}
  try:
    found = detect(shapes, read=tensors.__getitem__)
    networks = {
      network.name: network
      for network in (found.unet, found.vae, *found.text_encoders)
      if network is not None
    }
    needed = {network.name: network for network in configs.networks}
    if networks.keys() != needed.keys():
      return False
    if not all(_is_same(networks[name], needed[name]) for name in needed):
      return False
  except LdmJaxError:
    return False
  if found.scheduler is None or configs.scheduler is None:
    # An autoencoder alone: the file does not say its scale.
    return False
  schedulers = found.scheduler, configs.scheduler
  noises = map(scheduler_config.schedule, schedulers)
  samplers = map(scheduler_config.sampler_config, schedulers)
  is_pair = "text_encoder_2" in needed and "text_encoder" in needed
  zeros = configs.index.get(_ZEROS, is_pair)
  return len({*noises}) == len({*samplers}) == 1 and zeros == is_pair


def _is_same(found: Submodule, needed: Submodule) -> bool:
  """Whether two configs are of one network with the same inputs and scale."""
  if (found.kind, found.prefix) != (needed.kind, needed.prefix):
    return False
  first, second = (_without_end(each.config) for each in (found, needed))
  if build(first) != build(second):
    return False
  if found.kind == "unet":
    return unet_reader.inputs(first)._replace(size=None) == (
      unet_reader.inputs(second)._replace(size=None)
    )
  if found.kind != "autoencoder":
    return True
  scales = {np.float32(latent_scale(each)) for each in (first, second)}
  return len(scales) == 1


def _without_end(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """A text encoder's config whose end token is the largest, as in CLIP's."""
  if config.get("eos_token_id") == config.get("vocab_size", 0) - 1:
    return dict(config) | {"eos_token_id": 2}
  return config


def read_stored(metadata: Mapping[str, str]) -> StoredConfigs | None:
  """The configs of a file's metadata; None if it has none.

  Raises:
    WeightsError: they are not what `stored` writes.
  """
  if KEY not in metadata:
    return None
  value = parse_json(metadata[KEY], WeightsError, has_constants=True)
  match value:
    case {"networks": dict(networks), "scheduler": scheduler, "index": dict()}:
      if networks and (scheduler is None or isinstance(scheduler, dict)):
        found = tuple(_network(n, networks[n]) for n in networks)
        return StoredConfigs(found, scheduler, value["index"])
  raise WeightsError(
    f"its metadata {KEY} is no object of networks, scheduler and index; take "
    "it out of the file to have the model detected by its tensors"
  )


def _network(name: str, value: Any) -> Submodule:
  match value:
    case {"kind": str(kind), "prefix": str(prefix), "config": dict(config)}:
      if kind in _KINDS:
        return Submodule(name, kind, prefix, config)
  raise WeightsError(
    f"its metadata {KEY} has a malformed network {name[:40]!r}; needed are a "
    f"kind of {', '.join(_KINDS)}, a prefix and a config"
  )
