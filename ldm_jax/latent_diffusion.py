"""What it is: a frozen first stage, a conditioner, a U-Net and a schedule."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ldm_jax.diffusion.guidance import guide
from ldm_jax.diffusion.prediction import (
  Denoiser,
  Estimate,
  Prediction,
  to_pair,
)
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.bottleneck import Gaussian, Point
from ldm_jax.nn.conditioner import Condition, merge
from ldm_jax.nn.prompts import ClipEmbedder, Conditioner
from ldm_jax.nn.unet import UNet


@flax.struct.dataclass
class Parameters:
  """Everything a `LatentDiffusion` computes with.

  Attributes:
    first_stage: of the autoencoder.
    latent_scale: latents are multiplied by it to have about unit variance.
    conditioners: by what each reads.
    unet: of the U-Net.
  """

  first_stage: Any
  latent_scale: Any
  conditioners: Any
  unet: Any


def to_float(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
  """0..255 to [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
  """[-1, 1] to 0..255, clipped and rounded half up, never truncated."""
  scaled = jnp.floor((images + 1.0) * 127.5 + 0.5)
  return jnp.clip(scaled, 0, 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
  """Encode, denoise, decode  (Rombach et al. 2022, figure 3).

  Attributes:
    first_stage: None only in the config of a run that has not started: it is
      filled in from the first stage's run.
    conditioners: each reads one array of the batch; their parts are merged.
    prediction: what the U-Net answers.
  """

  first_stage: Autoencoder | None = None
  unet: UNet = UNet()
  conditioners: tuple[Conditioner, ...] = ()
  schedule: Schedule = Schedule()
  prediction: Prediction = "eps"

  def __post_init__(self):
    names = [part.reads for part in self.conditioners]
    if len(set(names)) < len(names):
      raise ValueError(
        f"two conditioners read the same array (they read {names}); give "
        "each its own"
      )
    if self.schedule.zero_terminal_snr and self.prediction == "eps":
      raise ValueError(
        "zero_terminal_snr leaves nothing of the image at the last time, so "
        "x0 cannot be told from eps there; use prediction='v' or 'x0'"
      )

  @property
  def frozen(self) -> tuple[str, ...]:
    """What the conditioners read that are not trained with the U-Net."""
    parts = [p for p in self.conditioners if isinstance(p, ClipEmbedder)]
    return tuple(part.reads for part in parts if part.is_frozen)

  def encode(
    self, params: Parameters, images: Float[Array, "b h w 3"]
  ) -> Gaussian | Point:
    """q(z | x) of images in [-1, 1], before scaling.

    The caller takes its mode or samples it, and multiplies by
    `params.latent_scale` to enter the diffusion.
    """
    return self.first_stage.apply(params.first_stage, images, method="encode")

  def decode(
    self, params: Parameters, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b H W 3"]:
    """Images of scaled latents, about [-1, 1]."""
    return self.first_stage.apply(
      params.first_stage, latents / params.latent_scale, method="decode"
    )

  def condition(
    self,
    params: Parameters,
    raw: Mapping[str, Array],
    drop: Mapping[str, Array],
  ) -> Condition:
    """Merges every conditioner's part.

    Args:
      raw: what the conditioners read: ids, labels, ...
      drop: per conditioner, bool [b]: true where it shall say its null.
    """
    parts = [
      part.apply(
        params.conditioners[part.reads], raw[part.reads], drop[part.reads]
      )
      for part in self.conditioners
    ]
    return merge(parts)

  def network(
    self,
    params: Parameters,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
    rngs: Mapping[str, Array] | None = None,
  ) -> Float[Array, "b h w c"]:
    """The U-Net's bare answer, in the language of `prediction`.

    `rngs` holds a "dropout" key in training and is absent otherwise.
    """
    return self.unet.apply(params.unet, xt, t, condition, rngs=rngs)

  def denoiser(self, params: Parameters, condition: Condition) -> Denoiser:
    """(x_t, t) -> (x0, eps) under a condition; t may be one for all."""

    def denoise(xt: Array, t: Array) -> Estimate:
      t = jnp.broadcast_to(t, (len(xt),))
      output = self.network(params, xt, t, condition)
      return to_pair(self.prediction, self.schedule, xt, t, output)

    return denoise

  def guided(
    self,
    params: Parameters,
    negative: Condition,
    positive: Condition,
    scale: Float[Array, ""] | float,
  ) -> Denoiser:
    """Classifier-free guidance, both halves in one pass, the negative first."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x), negative, positive)
    denoise_both = self.denoiser(params, both)

    def denoise(xt: Array, t: Array) -> Estimate:
      pair = denoise_both(jnp.concatenate([xt, xt]), t)
      half = lambda i: jax.tree.map(lambda x: jnp.split(x, 2)[i], pair)
      return guide(half(0), half(1), scale)

    return denoise

  def init(self, key: Array, raw: Mapping[str, Array], shape: tuple) -> dict:
    """Fresh parameters of what stage two trains: U-Net and conditioners.

    Args:
      raw: an example of what the conditioners read.
      shape: [b h w c] of the latents.
    """
    key_unet, key_parts = jax.random.split(key)
    drop = jnp.zeros((shape[0],), bool)
    keys = jax.random.split(key_parts, max(1, len(self.conditioners)))
    made = [
      part.init_with_output(k, raw[part.reads], drop)
      for k, part in zip(keys, self.conditioners, strict=False)
    ]
    condition = merge([out for out, _ in made])
    names = [part.reads for part in self.conditioners]
    latents, t = jnp.zeros(shape), jnp.zeros((shape[0],))
    return {
      "unet": self.unet.init(key_unet, latents, t, condition),
      "conditioners": {
        name: variables
        for name, (_, variables) in zip(names, made, strict=True)
      },
    }
