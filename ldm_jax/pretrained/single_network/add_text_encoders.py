"""Text encoders for a model whose file has none, or one of two."""

import dataclasses
from collections.abc import Sequence

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.components import NETWORKS, Components, open_network
from ldm_jax.pretrained.configs import text_encoder_config, unet_reader
from ldm_jax.pretrained.hub.fetch import local_path


def add_text_encoders(
  components: Components, folders: Sequence[str]
) -> Components:
  """The components with CLIP text encoders from folders.

  Of SDXL's two, the one that projects its pooled state is the second. They
  come in place of the model's own.

  Raises:
    ConfigError: a folder holds another network, two folders hold the same of
      SDXL's two, or there are more of them than the model has places for.
    WeightsError: a folder has no weights.
  """
  if "unet" not in components.networks:
    raise ConfigError(
      "text_encoder is for a model with a U-Net; leave it out (--text_encoder)"
    )
  inputs = unet_reader.inputs(components.networks["unet"].config)
  found = {}
  for folder in folders:
    network = open_network(local_path(folder))
    if network.kind != "clip":
      raise ConfigError(
        f"text_encoder {folder!r} holds a network of kind {network.kind!r}; "
        "needed is the folder of a CLIPTextModel (--text_encoder)"
      )
    is_second = inputs.sinusoids is not None and (
      text_encoder_config.clip(network.config).projection is not None
    )
    name = "text_encoder_2" if is_second else "text_encoder"
    if name in found:
      raise ConfigError(
        f"text_encoder {folder!r} is a second {name}; give one folder for each "
        "text encoder of the model (--text_encoder)"
      )
    found[name] = network
  networks = dict(components.networks) | found
  warnings = tuple(w for w in components.warnings if "text encoder" not in w)
  return dataclasses.replace(
    components,
    networks={name: networks.pop(name) for name in NETWORKS if name in networks}
    | networks,
    warnings=warnings,
  )
