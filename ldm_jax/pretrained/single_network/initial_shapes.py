"""Shapes of a network's variables, by its module and its config."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.deep_compression.autoencoder import DCAutoencoder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs import unet_reader
from ldm_jax.pretrained.configs.strict_config import Config
from ldm_jax.pretrained.dit import dit_config
from ldm_jax.pretrained.flux import flux_config
from ldm_jax.pretrained.mmdit import mmdit_config
from ldm_jax.runtime.program_cache import Structure, shared_by_value
from ldm_jax.runtime.stored_programs import stored_value


def abstract(module: nn.Module, config: Config) -> dict[str, Any]:
  """Shapes of the module's variables.

  Equal modules are traced once: by a process, or, where programs are stored,
  by the first.
  """
  inputs = jax.eval_shape(lambda: _inputs(module, config))
  return _shapes(module, Structure.of(inputs))


@functools.partial(shared_by_value, size=64)
def _shapes(module: nn.Module, inputs: Structure) -> dict[str, Any]:
  key = jax.random.key(0)
  trace = lambda: jax.eval_shape(module.init, key, *inputs.shapes)
  return stored_value(("variables", module, inputs), trace)


def _inputs(module: nn.Module, config: Config) -> tuple[Any, ...]:
  """The smallest that the module takes, all zero."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  if isinstance(module, ClassEmbedder):
    return tokens[0], jnp.zeros((1,), bool)
  if isinstance(module, ClipVision | DinoV2):
    return (jnp.zeros((1, module.size, module.size, 3)),)
  if isinstance(module, Autoencoder | TinyAutoencoder | DCAutoencoder):
    side = module.stride
    shape = (1, *module.latent_shape(side, side))
    return jnp.zeros((1, side, side, 3)), jnp.zeros(shape)
  if isinstance(module, DiT):
    return _dit_inputs(module, config)
  if isinstance(module, MMDiT):
    return mmdit_config.init_inputs(config)
  if isinstance(module, Flux):
    return flux_config.init_inputs(config)
  if not isinstance(module, UNet):
    return (tokens,)
  return _unet_inputs(module, config)


def _unet_inputs(module: UNet, config: Config) -> tuple[Any, ...]:
  inputs = unet_reader.inputs(config)
  side = 2 ** (len(module.multipliers) - 1)
  context, vector = inputs.context, inputs.vector
  condition = Condition(
    context=None if context is None else jnp.zeros((1, 1, context)),
    vector=None if vector is None else jnp.zeros((1, vector)),
    guidance=None if module.guidance_width is None else jnp.zeros((1,)),
  )
  latents = jnp.zeros((1, side, side, inputs.channels))
  if not isinstance(module, ControlNet):
    return latents, jnp.zeros((1,)), condition
  side *= 2 ** (len(module.hint_channels) - 1)
  return latents, jnp.zeros((1,)), condition, jnp.zeros((1, side, side, 3))


def _dit_inputs(module: DiT, config: Config) -> tuple[Any, ...]:
  inputs = dit_config.inputs(config)
  latents = jnp.zeros((1, module.patch, module.patch, inputs.channels))
  condition = Condition(vector=jnp.zeros((1, inputs.vector)))
  return latents, jnp.zeros((1,)), condition
