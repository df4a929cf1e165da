"""Assembles published networks into a `LatentDiffusion` with its parameters."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.spatial import LowResolution
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.conditioner_variables import conditioner_variables
from ldm_jax.pretrained.configs import scheduler_config
from ldm_jax.pretrained.configs.concat_inputs import concat_conditioners
from ldm_jax.pretrained.configs.encoder_keys import unread_encoder_keys
from ldm_jax.pretrained.configs.index_keys import check_pipeline
from ldm_jax.pretrained.dit.sampling_defaults import (
  class_names,
  default_guidance,
  sampling_defaults,
)
from ldm_jax.pretrained.dit.tensors import check_copies
from ldm_jax.pretrained.networks import latent_scale
from ldm_jax.pretrained.quantizer import load_quantized
from ldm_jax.pretrained.text.conditioners import conditioners_of, unet_inputs
from ldm_jax.pretrained.text.prompt_tokens import t5_tokenizer_of, tokenizer_of
from ldm_jax.pretrained.text.subfolders import absent_encoders
from ldm_jax.weights.quantize import WeightDtype


def assemble(
  components: Components,
  dtype: DTypeLike | None = "float32",
  weight_dtype: WeightDtype | None = None,
) -> LoadedModel:
  """Reads all networks and assembles the model.

  Args:
    dtype: None leaves every parameter in its file, as a `LazyTensor`.
    weight_dtype: of the matrices; see `LoadOptions`.

  Raises:
    ConfigError: a component is missing, a config asks for something that is
      not supported, or the transformer is of another pipeline.
    WeightsError: a network's tensors do not fit its config.
  """
  _check_complete(components)
  check_copies(components.networks["unet"])
  networks = {
    name: load_quantized(network, name, dtype, weight_dtype)
    for name, network in components.networks.items()
  }
  first_stage, first_params = networks.pop("vae")
  unet, unet_params = networks.pop("unet")
  scale = latent_scale(components.networks["vae"].config)
  inputs = unet_inputs(components)
  defaults = sampling_defaults(unet, components.scheduler)
  tokenizers = tokenizer_of(components), t5_tokenizer_of(components)
  conditioners = conditioners_of(components, networks, *tokenizers)
  conditioners += concat_conditioners(
    components.index, inputs, first_stage.latent_channels, first_stage.stride
  )
  model = LatentDiffusion(
    first_stage,
    unet,
    tuple(conditioners),
    defaults.schedule,
    defaults.prediction,
    noise_augmentation_schedule=_noise_augmentation(components, conditioners),
  )
  side = (inputs.size or 64) * first_stage.stride
  return LoadedModel(
    model=model,
    params=Parameters(
      first_params,
      jnp.float32(scale),
      conditioner_variables(conditioners, networks),
      unet_params,
    ),
    tokenizer=tokenizers[0],
    t5_tokenizer=tokenizers[1],
    height=side,
    width=side,
    guidance=default_guidance(unet, inputs),
    sampler_config=defaults.sampler,
    scheduler=components.scheduler,
    unet_channels=inputs.channels,
    classes=class_names(components.index, conditioners),
    warnings=_index_and_encoder_warnings(components) + defaults.warnings,
  )


def _index_and_encoder_warnings(components: Components) -> tuple[str, ...]:
  warnings = components.warnings + absent_encoders(components.networks)
  for name, network in components.networks.items():
    warnings += unread_encoder_keys(name, network.kind, network.config)
  return warnings


def _check_complete(components: Components) -> None:
  """Raises ConfigError for a missing network, or for another pipeline's."""
  listed = ", ".join(components.networks)
  if "unet" not in components.networks:
    raise ConfigError(
      f"the model has no unet; it has {listed}. A single network is loaded by "
      "giving its subfolder"
    )
  check_pipeline(components.networks["unet"].kind, components.index)
  if "vae" not in components.networks:
    raise ConfigError(
      f"the model has no autoencoder; it has {listed}: give one with vae=PATH "
      "(--vae), a folder or a file"
    )
  context = unet_inputs(components).context
  if context is not None and set(components.networks) == {"unet", "vae"}:
    raise ConfigError(
      f"the U-Net reads {context} features of text, and the model has no text "
      "encoder; give one with text_encoder=[FOLDER] (--text_encoder), and "
      "tokenizer=FOLDER (--tokenizer)"
    )


def _noise_augmentation(
  components: Components, conditioners: list[Conditioner]
) -> Schedule | None:
  """The schedule of noise on an upscaler's low-resolution image."""
  if not any(isinstance(c, LowResolution) for c in conditioners):
    return None
  if components.low_res_scheduler is None:
    return Schedule()
  return scheduler_config.schedule(components.low_res_scheduler)[0]
