"""Pictures as a U-Net reads them beside x_t: with a hole, or small."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.schedule import q_sample
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.spatial import (
  LowResolution,
  Masked,
  MaskedImage,
  Small,
  first_of_cells,
)
from ldm_jax.pixels import to_float


class Grain(NamedTuple):
  """Noise for small pictures.

  Attributes:
    level: [b], its time, whole.
    noise: standard normal, of the pictures' shape.
  """

  level: Any
  noise: Any


def look(
  model: LatentDiffusion,
  params: Parameters,
  raw: Mapping[str, Any],
  grain: Grain | None,
) -> dict[str, Any]:
  """`raw` with masks and small pictures as the conditioners read them.

  Args:
    raw: a batch; masks hide parts of its "image".
    grain: see `small`.
  """
  seen = dict(raw)
  for part in model.conditioners:
    if isinstance(part, MaskedImage):
      masks = raw[part.reads]
      images = part.hide(to_float(raw["image"]), masks)
      latents = params.latent_scale * model.encode(params, images).mode()
      cells = first_of_cells(masks, model.first_stage.stride)
      seen[part.reads] = Masked(latents, cells)
    elif isinstance(part, LowResolution):
      seen[part.reads] = small(model, to_float(raw[part.reads]), grain)
  return seen


def small(
  model: LatentDiffusion, images: Float[Array, "b h w 3"], grain: Grain | None
) -> Small:
  """Small pictures with noise of the model's `low_noise`, if it has that."""
  if model.low_noise is None:
    return Small(images, jnp.zeros(len(images)))
  noisy = q_sample(model.low_noise, images, grain.level, grain.noise)
  return Small(noisy, grain.level)
