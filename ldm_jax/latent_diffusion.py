"""What it is: a frozen first stage, a conditioner, a U-Net and a schedule."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.prediction import (
  Denoiser,
  Estimate,
  Prediction,
  to_estimate,
)
from ldm_jax.diffusion.schedule import Level, Schedule
from ldm_jax.nn.autoencoder import FirstStage
from ldm_jax.nn.bottleneck import DeterministicPosterior, DiagonalGaussian
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import Condition, merge
from ldm_jax.nn.controlnet import ControlNet, controlled
from ldm_jax.nn.unet import UNet


@flax.struct.dataclass
class Parameters:
  """Everything a `LatentDiffusion` computes with.

  Attributes:
    first_stage: of the autoencoder.
    latent_scale: latents are multiplied by it to have about unit variance.
    conditioners: by what each reads.
    unet: of the U-Net.
    control: of the ControlNet, if there is one.
  """

  first_stage: Any
  latent_scale: Any
  conditioners: Any
  unet: Any
  control: Any = None


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
  """Encode, denoise, decode  (Rombach et al. 2022, figure 3).

  Attributes:
    first_stage: `PixelSpace` diffuses pixels. None only in the config of a run
      that has not started: it is filled in from the first stage's run.
    conditioners: each reads one array of the batch; their parts are merged.
    prediction: what the U-Net answers.
    control: a ControlNet, which speaks where a condition has a hint.
    low_noise: of the small pictures that `LowResolution` reads; None for none.
  """

  first_stage: FirstStage | None = None
  unet: UNet = UNet()
  conditioners: tuple[Conditioner, ...] = ()
  schedule: Schedule = Schedule()
  prediction: Prediction = "eps"
  control: ControlNet | None = None
  noise_augmentation_schedule: Schedule | None = None

  def __post_init__(self):
    names = [part.input_key for part in self.conditioners]
    if len(set(names)) < len(names):
      raise ValueError(
        f"two conditioners read the same array (they read {names}); give "
        "each its own"
      )
    if self.schedule.has_zero_terminal_snr and self.prediction == "eps":
      raise ValueError(
        "zero_terminal_snr (or rectified_flow) leaves nothing of the image at "
        "the last time, where eps tells no x0; use prediction v, x0 or flow"
      )

  @property
  def frozen_conditioners(self) -> tuple[str, ...]:
    """What the conditioners read that are not trained with the U-Net."""
    return tuple(p.input_key for p in self.conditioners if p.is_frozen)

  def find_conditioner(self, kind: type) -> Any:
    """The first conditioner of a kind, or None."""
    return next((p for p in self.conditioners if isinstance(p, kind)), None)

  @property
  def size_multiple(self) -> int:
    """Pixels that the sides of images must be multiples of."""
    return self.first_stage.stride * 2 ** (len(self.unet.multipliers) - 1)

  def encode(
    self, params: Parameters, images: Float[Array, "b h w 3"]
  ) -> DiagonalGaussian | DeterministicPosterior:
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
    raw: Mapping[str, Any],
    drop: Mapping[str, Array],
  ) -> Condition:
    """Merges every conditioner's part.

    Args:
      raw: what the conditioners read: ids, labels, ...
      drop: per conditioner, bool [b]: true where it shall say its null.
    """
    parts = [
      part.apply(
        params.conditioners[part.input_key],
        raw[part.input_key],
        drop[part.input_key],
      )
      for part in self.conditioners
    ]
    return merge(parts)

  def predict(
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
    if condition.hint is not None:
      hint, share = condition.hint, t / self.schedule.steps
      said = self.control.apply(params.control, xt, t, condition, hint)
      condition = controlled(condition, said, share)
    return self.unet.apply(params.unet, xt, t, condition, rngs=rngs)

  def denoiser(self, params: Parameters, condition: Condition) -> Denoiser:
    """(x_t, level) -> (x0, eps) under a condition."""

    def denoise(xt: Array, level: Level) -> Estimate:
      t = jnp.broadcast_to(level.time, (xt.shape[0],))
      output = self.predict(params, xt, t, condition)
      return to_estimate(self.prediction, level, xt, output)

    return denoise

  def guided_denoiser(
    self,
    params: Parameters,
    negative: Condition,
    positive: Condition,
    guidance: ClassifierFreeGuidance,
  ) -> Denoiser:
    """Classifier-free guidance, both halves in one pass, the negative first."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x), negative, positive)

    def denoise(xt: Array, level: Level) -> Estimate:
      t = jnp.broadcast_to(level.time, (2 * xt.shape[0],))
      output = self.predict(params, jnp.concatenate([xt, xt]), t, both)
      share = level.time / self.schedule.steps
      output = guidance.combine(*jnp.split(output, 2), share)
      return to_estimate(self.prediction, level, xt, output)

    return denoise

  def init(self, key: Array, raw: Mapping[str, Any], shape: tuple) -> dict:
    """Fresh parameters of what stage two trains: U-Net and conditioners.

    Args:
      raw: an example of what the conditioners read; see `beside.look`.
      shape: [b h w c] of the latents.
    """
    key_unet, key_parts = jax.random.split(key)
    keys = jax.random.split(key_parts, max(1, len(self.conditioners)))
    drop, t = jnp.zeros((shape[0],), bool), jnp.zeros((shape[0],))
    made = {
      part.input_key: part.init_with_output(k, raw[part.input_key], drop)
      for k, part in zip(keys, self.conditioners, strict=False)
    }
    condition = merge([said for said, _ in made.values()])
    return {
      "unet": self.unet.init(key_unet, jnp.zeros(shape), t, condition),
      "conditioners": {name: each for name, (_, each) in made.items()},
    }
