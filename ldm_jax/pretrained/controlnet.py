"""A ControlNet added to a model  (Zhang et al. 2023)."""

import dataclasses
import os

from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs.unet_reader import CONTROL
from ldm_jax.pretrained.from_pretrained import find_components
from ldm_jax.pretrained.networks import class_of, load
from ldm_jax.pretrained.single_network.controlnet_file import controlnet_file


def with_controlnet(
  loaded: LoadedModel, path: str, dtype: DTypeLike = "float32"
) -> LoadedModel:
  """The model with a ControlNet for its U-Net.

  Args:
    path: folder or hub repository of one ControlNetModel, or a file with the
      names of ControlNet's own code or of diffusers.
    dtype: of its parameters and computation.

  Raises:
    ConfigError: there is none, or it was made for another U-Net.
    WeightsError: its weights are missing, malformed or of another network.
  """
  unet = loaded.model.unet
  if not isinstance(unet, UNet):
    raise ConfigError(
      f"a ControlNet needs a UNet; this model has a {type(unet).__name__}; "
      "leave controlnet out (--controlnet)"
    )
  if os.path.isfile(path):
    single = controlnet_file(path, loaded)
  else:
    single = find_components(path).single
  if single is None or class_of(single.config) != CONTROL:
    raise ConfigError(
      f"controlnet {path!r} must be the folder of one ControlNetModel of "
      "diffusers, or a file of one ControlNet (--controlnet)"
    )
  control, variables = load(single, dtype)
  found, needed = (
    (net.channels, net.multipliers, net.blocks, net.attention.depths)
    for net in (control, unet)
  )
  if found != needed:
    raise ConfigError(
      f"controlnet {path!r} was made for another U-Net: widths, levels, "
      f"blocks and depths {found}; the model has {needed} (--controlnet)"
    )
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(loaded.model, control=control),
    params=loaded.params.replace(control=variables),
  )
