"""Text encoders for a model whose file has none, or one of two."""

import dataclasses
from collections.abc import Sequence

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.components import NETWORKS, Components
from ldm_jax.pretrained.configs import text_encoder_config, unet_reader
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.text.open_encoder import open_encoder
from ldm_jax.pretrained.text.prompt_tokens import T5_FAMILIES
from ldm_jax.pretrained.text.subfolders import for_backbone, subfolder_of


def add_text_encoders(
  components: Components, folders: Sequence[str]
) -> Components:
  """The components with text encoders from folders, or a T5 from a file.

  Of SDXL's two, the one that projects its pooled state is the second. They
  come in place of the model's own.

  Raises:
    ConfigError: a folder holds another network, two folders hold the same of
      a model's text encoders, or there are more of them than it has places for.
    WeightsError: a folder has no weights.
  """
  if "unet" not in components.networks:
    raise ConfigError(
      "text_encoder is for a model with a U-Net; leave it out (--text_encoder)"
    )
  unet = components.networks["unet"]
  found = {}
  for folder in folders:
    network = open_encoder(folder)
    if unet.kind in T5_FAMILIES:
      name = subfolder_of(unet.kind, network, folder)
      network = for_backbone(unet.kind, network)
    else:
      name = _place(unet, network, folder)
    if name in found:
      raise ConfigError(
        f"text_encoder {folder!r} is a second {name}; give one folder for each "
        "text encoder of the model (--text_encoder)"
      )
    found[name] = network
  networks = dict(components.networks) | found
  # The line is about a file that lacks what is given here.
  warnings = tuple(w for w in components.warnings if "--text_encoder" not in w)
  return dataclasses.replace(
    components,
    networks={name: networks.pop(name) for name in NETWORKS if name in networks}
    | networks,
    warnings=warnings,
  )


def _place(unet: ForeignNetwork, network: ForeignNetwork, path: str) -> str:
  """The subfolder of a CLIP text encoder of Stable Diffusion."""
  if network.kind != "clip":
    raise ConfigError(
      f"text_encoder {path!r} holds a network of kind {network.kind!r}; "
      "needed is the folder of a CLIPTextModel (--text_encoder)"
    )
  projection = text_encoder_config.clip(network.config).projection
  is_of_two = unet_reader.inputs(unet.config).sinusoids is not None
  is_second = is_of_two and projection is not None
  return "text_encoder_2" if is_second else "text_encoder"
