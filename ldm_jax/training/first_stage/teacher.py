"""A frozen autoencoder whose outputs a smaller one imitates."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.first_stage import FirstStage, Posterior
from ldm_jax.nn.latent_normalization import denormalize, normalize
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder

Images = Float[Array, "b h w 3"]


class Frozen(flax.struct.PyTreeNode):
  """Parameters that are not trained: the teacher's, the scale of its latents,
  and those of LPIPS or None."""

  first_stage: Any
  latent_scale: Any
  perceptual: Any = None


class Lesson(flax.struct.PyTreeNode):
  """What the student is to return of a batch: `mode` of the encoder, `target`
  of the decoder for `latents`."""

  mode: Any
  latents: Any
  target: Any


def encode(stage: FirstStage, frozen: Frozen, images: Images) -> Posterior:
  """q(z | x) of the teacher; normalised, but not scaled."""
  posterior = stage.apply(frozen.first_stage, images, method="encode")
  return normalize(stage, posterior)


def decode(stage: FirstStage, frozen: Frozen, latents: Array) -> Images:
  """The teacher's images of scaled latents, clipped to [-1, 1]."""
  unscaled = denormalize(stage, latents / frozen.latent_scale)
  images = stage.apply(frozen.first_stage, unscaled, method="decode")
  return jnp.clip(images, -1.0, 1.0)


def student_of(stage: FirstStage, channels: int) -> TinyAutoencoder:
  """TAESD's architecture for the latents of a first stage.

  Every level has three residual blocks, but the finest has one.

  Raises:
    ValueError: the stride of the first stage is none of 2, 4, 8, ...
  """
  halvings = stage.stride.bit_length() - 1
  if halvings < 1 or 2**halvings != stage.stride:
    raise ValueError(
      f"a first stage of stride {stage.stride} cannot be distilled: a "
      "TinyAutoencoder has a stride of 2, 4, 8, ..."
    )
  blocks = (3,) * halvings
  return TinyAutoencoder(
    channels, stage.latent_channels, (1, *blocks), (*blocks, 1)
  )


def check_student(student: TinyAutoencoder, stage: FirstStage) -> None:
  """Raises ValueError if the student cannot have the teacher's latents."""
  own = student.latent_channels, student.stride
  needed = stage.latent_channels, stage.stride
  if own != needed:
    raise ValueError(
      f"the autoencoder has latents of {own[0]} channels and stride {own[1]}, "
      f"the first stage of {needed[0]} channels and stride {needed[1]}; leave "
      "it out to take those (autoencoder=None)"
    )
