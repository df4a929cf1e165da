"""Prepares the inputs of conditioners over images, and over cached texts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ldm_jax.diffusion.schedule import q_sample
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedded_text import embedded_text
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  MaskedLatents,
  NoisyLowResolution,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.latent_normalization import denormalize
from ldm_jax.pixels import to_float


class NoiseAugmentation(NamedTuple):
  """Noise for low-resolution images  (Ho et al. 2022, section 4.2).

  Attributes:
    level: [b], whole times of the model's `noise_augmentation_schedule`.
    noise: standard normal, of the images' shape.
  """

  level: Any
  noise: Any


def prepare_inputs(
  model: LatentDiffusion,
  params: Parameters,
  raw: Mapping[str, Any],
  noise_augmentation: NoiseAugmentation | None,
) -> dict[str, Any]:
  """`raw` with masks, images and cached texts as the conditioners take them.

  Args:
    raw: a batch; masks hide parts of its "image".
    noise_augmentation: see `low_resolution_input`.
  """
  inputs = dict(raw)
  for conditioner in model.conditioners:
    name = conditioner.input_key
    if isinstance(conditioner, MaskedImage):
      masks = raw[name]
      images = conditioner.mask_images(to_float(raw["image"]), masks)
      latents = params.latent_scale * model.encode(params, images).mode()
      cells = conditioner.cells(masks, model.first_stage.stride)
      inputs[name] = MaskedLatents(latents, cells)
    elif isinstance(conditioner, LowResolution):
      inputs[name] = low_resolution_input(
        model, to_float(raw[name]), noise_augmentation
      )
    elif isinstance(conditioner, SourceImage):
      latents = model.encode(params, to_float(raw[name])).mode()
      inputs[name] = (
        params.latent_scale * latents
        if conditioner.is_scaled
        else denormalize(model.first_stage, latents)
      )
    elif isinstance(conditioner, ClipEmbedder | T5Embedder):
      inputs[name] = embedded_text(raw, name) or raw[name]
  return inputs


def low_resolution_input(
  model: LatentDiffusion,
  images: Float[Array, "b h w 3"],
  noise_augmentation: NoiseAugmentation | None,
) -> NoisyLowResolution:
  """Images with noise, if the model has a `noise_augmentation_schedule`."""
  if model.noise_augmentation_schedule is None:
    return NoisyLowResolution(images, jnp.zeros(len(images)))
  noisy = q_sample(
    model.noise_augmentation_schedule,
    images,
    noise_augmentation.level,
    noise_augmentation.noise,
  )
  return NoisyLowResolution(noisy, noise_augmentation.level)


def draw_drops(
  model: LatentDiffusion, key: Array, keys: Sequence[Array], count: int
) -> dict[str, Bool[Array, " b"]]:
  """The examples of a training batch that each conditioner drops.

  Args:
    key: of the step.
    keys: of the conditioners.
    count: examples.
  """
  drop = {
    part.input_key: jax.random.bernoulli(k, part.drop_rate, (count,))
    for part, k in zip(model.conditioners, keys, strict=True)
  }
  source = model.find_conditioner(SourceImage)
  if source is None or not source.joint_drop_rate:
    return drop
  key = jax.random.fold_in(key, 2)
  every = jax.random.bernoulli(key, source.joint_drop_rate, (count,))
  for part in model.conditioners:
    if part.has_unconditional:
      drop[part.input_key] |= every
  return drop


def draw_noise_augmentation(
  model: LatentDiffusion, key: Array, batch: Mapping[str, Any]
) -> NoiseAugmentation | None:
  """Noise of a training batch's low-resolution images, at random levels.

  None where the model takes none.
  """
  part = model.find_conditioner(LowResolution)
  if part is None or not part.levels:
    return None
  key_level, key_noise = jax.random.split(key)
  shape = batch[part.input_key].shape
  level = jax.random.randint(key_level, shape[:1], 0, part.max_train_level)
  noise = jax.random.normal(key_noise, shape)
  return NoiseAugmentation(level.astype(jnp.float32), noise)
