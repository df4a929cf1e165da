"""Pictures as a U-Net reads them beside x_t: with a hole, or small."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.schedule import q_sample
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  MaskedLatents,
  NoisyLowResolution,
  subsample_mask,
)
from ldm_jax.pixels import to_float


class NoiseAugmentation(NamedTuple):
  """Noise for small pictures.

  Attributes:
    level: [b], its time, whole.
    noise: standard normal, of the pictures' shape.
  """

  level: Any
  noise: Any


def prepare_inputs(
  model: LatentDiffusion,
  params: Parameters,
  raw: Mapping[str, Any],
  noise_augmentation: NoiseAugmentation | None,
) -> dict[str, Any]:
  """`raw` with masks and small pictures as the conditioners read them.

  Args:
    raw: a batch; masks hide parts of its "image".
    grain: see `small`.
  """
  seen = dict(raw)
  for part in model.conditioners:
    if isinstance(part, MaskedImage):
      masks = raw[part.input_key]
      images = part.mask_images(to_float(raw["image"]), masks)
      latents = params.latent_scale * model.encode(params, images).mode()
      cells = subsample_mask(masks, model.first_stage.stride)
      seen[part.input_key] = MaskedLatents(latents, cells)
    elif isinstance(part, LowResolution):
      seen[part.input_key] = low_resolution_input(
        model, to_float(raw[part.input_key]), noise_augmentation
      )
  return seen


def low_resolution_input(
  model: LatentDiffusion,
  images: Float[Array, "b h w 3"],
  noise_augmentation: NoiseAugmentation | None,
) -> NoisyLowResolution:
  """Small images, noised by `noise_augmentation_schedule` if there is one."""
  if model.noise_augmentation_schedule is None:
    return NoisyLowResolution(images, jnp.zeros(len(images)))
  noisy = q_sample(
    model.noise_augmentation_schedule,
    images,
    noise_augmentation.level,
    noise_augmentation.noise,
  )
  return NoisyLowResolution(noisy, noise_augmentation.level)
