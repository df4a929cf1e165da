"""Networks with the configs and tensor names of diffusers and CompVis."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.deep_compression.autoencoder import DCAutoencoder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.inpainting_decoder import InpaintingAutoencoder
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained import model_index
from ldm_jax.pretrained.conditioner_variables import (
  WEIGHTLESS,
  split_variables,
)
from ldm_jax.pretrained.configs import text_encoder_config, unet_reader
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder_config
from ldm_jax.pretrained.configs.dc_autoencoder_config import (
  dc_autoencoder_config,
)
from ldm_jax.pretrained.configs.defaults import SCALING_FACTOR
from ldm_jax.pretrained.configs.tiny_autoencoder_config import (
  tiny_autoencoder_config,
)
from ldm_jax.pretrained.configs.unet_writer import unet_config
from ldm_jax.pretrained.dit.folder import (
  NAME,
  label_embedder,
  transformer_config,
)
from ldm_jax.pretrained.flux import folder as flux_folder
from ldm_jax.pretrained.flux.flux_config import flux_config
from ldm_jax.pretrained.mmdit import folder as mmdit_folder
from ldm_jax.pretrained.mmdit.mmdit_config import mmdit_config
from ldm_jax.pretrained.networks import Module
from ldm_jax.pretrained.single_network.batch_statistics import has_statistics
from ldm_jax.pretrained.single_network.exported_network import ExportedNetwork
from ldm_jax.pretrained.text.t5_config import t5_config
from ldm_jax.weights.naming import convert

# Kinds of transformers, and functions (module, parameters) -> config.json.
_TRANSFORMERS = {MMDiT: ("mmdit", mmdit_config), Flux: ("flux", flux_config)}
# Raise ConfigError for conditioners that their pipelines cannot hold.
_CHECKS = {MMDiT: mmdit_folder.check_texts, Flux: flux_folder.check_texts}


def export_networks(
  module: LatentDiffusion, params: Parameters, side: int = 512
) -> list[ExportedNetwork]:
  """The networks of a whole model, the text encoders in their order.

  Raises:
    ConfigError: the format cannot hold one of them.
  """
  if module.control is not None:
    raise ConfigError("a ControlNet is not exported; set control=None")
  if type(module.unet) in _CHECKS:
    _CHECKS[type(module.unet)](module)
  sizes = [c.width for c in module.conditioners if isinstance(c, SizeEmbedder)]
  sinusoids = sizes[0] if sizes else None
  latent_side = side // module.first_stage.stride
  if isinstance(module.unet, DiT):
    unet = _dit(module, params, latent_side)
  elif type(module.unet) in _TRANSFORMERS:
    unet = export_network(module.unet, params.unet)
  else:
    unet = _unet(module.unet, params.unet, latent_side, sinusoids)
  # The shortest decimal of the float32: 0.18215, not 0.1821499913930893.
  scale = float(str(np.float32(params.latent_scale)))
  vae = _vae(module.first_stage, params.first_stage, side, scale)
  if unet.labels is not None:
    return [unet, vae]
  found = []
  for conditioner in module.conditioners:
    _check_conditioner(conditioner)
    variables = params.conditioners[conditioner.input_key]
    for encoder, own in split_variables(conditioner, variables):
      found.append(export_network(encoder, own))
  names = model_index.text_encoder_folders(module)
  named = zip(names, found, strict=True)
  return [
    unet,
    vae,
    *(dataclasses.replace(network, name=name) for name, network in named),
  ]


def _check_conditioner(conditioner: Any) -> None:
  """Raises ConfigError for a conditioner that the format cannot hold."""
  kind = type(conditioner)
  own = (ClassEmbedder, ClipEmbedder, T5Embedder, *get_args(WEIGHTLESS))
  if kind in own:
    return
  if kind is not TextEmbedder:
    raise ConfigError(
      "diffusers folders and single files have no name for a conditioner of "
      f"class {kind.__name__}; save the autoencoder or the U-Net "
      "alone"
    )
  if type(conditioner.encoder) is not TextEncoder:
    raise _unknown_class(conditioner.encoder)
  length, is_pooled = conditioner.encoder.length, conditioner.is_pooled
  if is_pooled or length != 77:
    raise ConfigError(
      f"the text encoder is of length {length} with is_pooled={is_pooled}: the "
      "pipelines of diffusers hold LDM's only, of length 77 and not pooled; "
      "save its autoencoder or U-Net alone"
    )


def export_network(
  module: Module,
  params: Mapping[str, Any],
  side: int = 512,
  latent_scale: float | None = None,
) -> ExportedNetwork:
  """A single network.

  Args:
    side: of the images it was trained on, in pixels.
    latent_scale: of an autoencoder's latents; None for diffusers' default.

  Raises:
    ConfigError: the format cannot hold it.
  """
  if isinstance(module, ControlNet):
    raise ConfigError("a ControlNet can be read, but not exported")
  if isinstance(module, UNet):
    return _unet(module, params, side // 8)
  if isinstance(module, DiT):
    raise ConfigError(
      "diffusers' transformer holds a DiT's table of labels too; give the "
      "whole LatentDiffusion, with its ClassEmbedder"
    )
  if type(module) in _TRANSFORMERS:
    kind, config_of = _TRANSFORMERS[type(module)]
    own = params["params"]
    return ExportedNetwork(NAME, kind, module, own, config_of(module, own))
  if isinstance(module, Autoencoder):
    default = 1.0 if has_statistics(module) else SCALING_FACTOR
    return _vae(module, params, side, latent_scale or default)
  if type(module) in (TinyAutoencoder, DCAutoencoder):
    return _vae(module, params, side, latent_scale or 1.0)
  variables = params["params"]
  if isinstance(module, ClipText):
    config = text_encoder_config.clip_config(module)
    return ExportedNetwork("text_encoder", "clip", module, variables, config)
  if isinstance(module, T5Encoder):
    config = t5_config(module)
    return ExportedNetwork("text_encoder", "t5", module, variables, config)
  if isinstance(module, DinoV2):
    config = text_encoder_config.dinov2_config(module)
    return ExportedNetwork("image_encoder", "dinov2", module, variables, config)
  if isinstance(module, ClassEmbedder):
    config = text_encoder_config.classes_config(module)
    return ExportedNetwork(
      "class_embedder", "classes", module, variables, config
    )
  if not isinstance(module, TextEncoder):
    raise _unknown_class(module)
  config = text_encoder_config.text_config(module)
  return ExportedNetwork("text_encoder", "text", module, variables, config)


def _unknown_class(module: Any) -> ConfigError:
  return ConfigError(
    "diffusers folders and single files have no name for a network of class "
    f"{type(module).__module__}:{type(module).__name__}; it can be trained and "
    "sampled here, but not exported"
  )


def _dit(
  model: LatentDiffusion, params: Parameters, side: int
) -> ExportedNetwork:
  """The transformer with its table of labels."""
  labels = params.conditioners[label_embedder(model).input_key]["params"]
  config = transformer_config(model, side)
  own = params.unet["params"]
  return ExportedNetwork(NAME, "dit", model.unet, own, config, labels)


def _unet(
  unet: UNet, variables: Any, side: int, sinusoids: int | None = None
) -> ExportedNetwork:
  if type(unet) is not UNet:
    raise _unknown_class(unet)
  params = variables["params"]
  inputs = unet_inputs(params)._replace(size=side, sinusoids=sinusoids)
  return ExportedNetwork(
    "unet", "unet", unet, params, unet_config(unet, inputs)
  )


def unet_inputs(params: Any) -> unet_reader.Inputs:
  """Channels, context and vector of a U-Net, by its parameters."""
  shape = convert.shapes(params)
  vectors = [
    shape[n][0] for n in ("vector_1/kernel", "vector/kernel") if n in shape
  ]
  contexts = {
    size[0]
    for name, size in shape.items()
    if name.endswith("attention2/k/kernel")
  }
  return unet_reader.Inputs(
    channels=shape["conv_in/kernel"][2],
    context=contexts.pop() if contexts else None,
    vector=vectors[0] if vectors else None,
  )


def _vae(
  vae: Autoencoder | TinyAutoencoder | DCAutoencoder,
  variables: Any,
  side: int,
  scale: float = SCALING_FACTOR,
) -> ExportedNetwork:
  if type(vae) is TinyAutoencoder:
    config = tiny_autoencoder_config(vae, scale)
    own = variables["params"]
    return ExportedNetwork("vae", "tiny_autoencoder", vae, own, config)
  if type(vae) is DCAutoencoder:
    config = dc_autoencoder_config(vae, scale)
    own = variables["params"]
    return ExportedNetwork("vae", "dc_autoencoder", vae, own, config)
  if type(vae) not in (Autoencoder, InpaintingAutoencoder):
    raise _unknown_class(vae)
  config = autoencoder_config(vae, scaling_factor=scale, sample_size=side)
  return ExportedNetwork("vae", "autoencoder", vae, variables["params"], config)
