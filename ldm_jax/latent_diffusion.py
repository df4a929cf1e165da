"""A latent diffusion model: first stage, conditioners, backbone, schedule."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.prediction import (
  Denoiser,
  Estimate,
  Prediction,
  to_estimate,
)
from ldm_jax.diffusion.schedule import Level, Schedule, append_dims
from ldm_jax.nn.backbone import Backbone, check_process
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import Condition, merge
from ldm_jax.nn.controlnet import ControlNet, with_residuals
from ldm_jax.nn.first_stage import FirstStage, Posterior
from ldm_jax.nn.latent_normalization import denormalize, normalize
from ldm_jax.nn.operators.quantized_array import apply
from ldm_jax.nn.unet import UNet


@flax.struct.dataclass
class Parameters:
  """The variables that a `LatentDiffusion` computes with.

  Attributes:
    first_stage: of the autoencoder.
    latent_scale: latents are multiplied by it to have about unit variance.
    conditioners: by `input_key`.
    unet: of the backbone.
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
      that has not started; it is then set from the first stage's run.
    unet: the backbone, a U-Net or another network; see `Backbone`.
    conditioners: each takes one array of the batch; their outputs are merged.
    prediction: the parameterization of the backbone's output.
    control: a ControlNet, used where a condition has a hint.
    noise_augmentation_schedule: of the low-resolution images that
      `LowResolution` takes; None for images without noise.

  Raises:
    ValueError: at construction: two conditioners take the same array, eps is
      predicted up to pure noise, or as `check_process`.
  """

  first_stage: FirstStage | None = None
  unet: Backbone = UNet()
  conditioners: tuple[Conditioner, ...] = ()
  schedule: Schedule = Schedule()
  prediction: Prediction = "eps"
  control: ControlNet | None = None
  noise_augmentation_schedule: Schedule | None = None

  def __post_init__(self):
    names = [conditioner.input_key for conditioner in self.conditioners]
    if len(set(names)) < len(names):
      raise ValueError(
        f"two conditioners read the same array (they read {names}); give "
        "each its own input_key"
      )
    check_process(self.unet, self.schedule, self.prediction)
    if self.schedule.has_zero_terminal_snr and self.prediction == "eps":
      raise ValueError(
        "with zero_terminal_snr (or rectified_flow) the last time is pure "
        "noise, where eps gives no x0; use prediction v, x0 or flow"
      )

  @property
  def frozen_conditioners(self) -> tuple[str, ...]:
    """`input_key` of the conditioners that are not trained with the U-Net."""
    return tuple(c.input_key for c in self.conditioners if c.is_frozen)

  def find_conditioner(self, kind: type) -> Any:
    """The first conditioner of a type, or None."""
    return next((c for c in self.conditioners if isinstance(c, kind)), None)

  @property
  def embeds_guidance(self) -> bool:
    """Whether the backbone reads the scale of guidance, as LCM's and FLUX.

    It then predicts the guided output, and guidance takes no second call.
    """
    return getattr(self.unet, "embeds_guidance", False)

  @property
  def unconditional_keys(self) -> tuple[str, ...]:
    """`input_key` of what guidance drops; none where the U-Net embeds it."""
    if self.embeds_guidance:
      return ()
    return tuple(c.input_key for c in self.conditioners if c.has_unconditional)

  @property
  def size_multiple(self) -> int:
    """Images' height and width in pixels must be multiples of it."""
    return self.first_stage.stride * self.unet.size_multiple

  def encode(
    self, params: Parameters, images: Float[Array, "b h w 3"]
  ) -> Posterior:
    """q(z | x) of images in [-1, 1], normalised but not scaled.

    The caller takes its mode or a sample, multiplied by `params.latent_scale`,
    as x0 of the diffusion.
    """
    posterior = self.first_stage.apply(
      params.first_stage, images, method="encode"
    )
    return normalize(self.first_stage, posterior)

  def decode(
    self, params: Parameters, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b H W 3"]:
    """Images of scaled latents, about [-1, 1]."""
    unscaled = denormalize(self.first_stage, latents / params.latent_scale)
    return self.first_stage.apply(params.first_stage, unscaled, method="decode")

  def condition(
    self,
    params: Parameters,
    raw: Mapping[str, Any],
    drop: Mapping[str, Array],
  ) -> Condition:
    """The merged outputs of all conditioners.

    Args:
      raw: the conditioners' inputs by `input_key`: ids, labels, ...
      drop: by `input_key`, bool [b]: true for the unconditional output.
    """
    names = [conditioner.input_key for conditioner in self.conditioners]
    return merge([self.condition_part(params, n, raw, drop) for n in names])

  def condition_part(
    self,
    params: Parameters,
    name: str,
    raw: Mapping[str, Any],
    drop: Mapping[str, Array],
  ) -> Condition:
    """The output of the conditioner whose `input_key` is `name`."""
    (part,) = (c for c in self.conditioners if c.input_key == name)
    return apply(part, params.conditioners[name], raw[name], drop[name])

  def predict(
    self,
    params: Parameters,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
    rngs: Mapping[str, Array] | None = None,
  ) -> Float[Array, "b h w c"]:
    """The backbone's output, in the parameterization `prediction`.

    `rngs` holds a "dropout" key in training, and is None otherwise.
    """
    if condition.hint is not None:
      hint, fraction = condition.hint, t / self.schedule.steps
      residuals = self.control.apply(params.control, xt, t, condition, hint)
      condition = with_residuals(condition, residuals, fraction)
    return apply(self.unet, params.unet, xt, t, condition, rngs=rngs)

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
    guidance: Guidance,
  ) -> Denoiser:
    """(x_t, level) -> (x0, eps) with guidance.

    The backbone is evaluated once on a batch of both conditions, the negative
    one first; twice if their contexts differ in length.
    """
    predict = self._predictor(params, [negative, positive])

    def denoise(xt: Array, level: Level) -> Estimate:
      outputs = predict(xt, level)
      fraction = level.time / self.schedule.steps
      output = guidance.combine(*outputs, fraction)
      return to_estimate(self.prediction, level, xt, output)

    return denoise

  def composed_denoiser(
    self,
    params: Parameters,
    negative: Condition,
    positives: Sequence[Condition],
    weights: Float[Array, "b k"] | None,
    guidance: Guidance,
    image: tuple[Condition, Guidance] | None = None,
  ) -> Denoiser:
    """Guidance towards several conditions  (Liu et al. 2022, eq. 11).

    The conditional output is negative + sum_i w_i (positive_i - negative).

    Args:
      weights: None of one condition.
      image: where `negative` has the image that is edited: the condition
        without it, and the guidance towards it (Brooks et al. 2023, eq. 3).
    """
    without = [] if image is None else [image[0]]
    predict = self._predictor(params, [negative, *positives, *without])

    def denoise(xt: Array, level: Level) -> Estimate:
      """x0 and eps of the guided outputs."""
      away, *outputs = predict(xt, level)
      fraction = level.time / self.schedule.steps
      change = 0.0
      if image is not None:
        change = image[1].combine(outputs.pop(), away, fraction) - away
      composed = outputs[0]
      if weights is not None:
        composed = away + sum(
          append_dims(weights[:, i], xt) * (output - away)
          for i, output in enumerate(outputs)
        )
      output = guidance.combine(away, composed, fraction) + change
      return to_estimate(self.prediction, level, xt, output)

    return denoise

  def _predictor(
    self, params: Parameters, conditions: Sequence[Condition]
  ) -> Callable[[Array, Level], list[Array]]:
    """(x_t, level) -> `predict` with each condition.

    One evaluation of the backbone on a batch of all of them, if their shapes
    agree.
    """
    time = lambda level, count: jnp.broadcast_to(level.time, (count,))
    shapes = [jax.tree.map(jnp.shape, condition) for condition in conditions]
    if any(shape != shapes[0] for shape in shapes):
      return lambda xt, level: [
        self.predict(params, xt, time(level, xt.shape[0]), each)
        for each in conditions
      ]
    count = len(conditions)
    every = jax.tree.map(lambda *x: jnp.concatenate(x), *conditions)

    def predict(xt: Array, level: Level) -> list[Array]:
      repeated = jnp.concatenate([xt] * count)
      t = time(level, repeated.shape[0])
      return jnp.split(self.predict(params, repeated, t, every), count)

    return predict

  def init(self, key: Array, raw: Mapping[str, Any], shape: tuple) -> dict:
    """New parameters of what stage two trains: backbone and conditioners.

    Args:
      raw: an example of the conditioners' inputs; see
        `concat_conditioning.prepare_inputs`.
      shape: [b h w c] of the latents.
    """
    key_unet, key_conditioners = jax.random.split(key)
    keys = jax.random.split(key_conditioners, max(1, len(self.conditioners)))
    drop, t = jnp.zeros((shape[0],), bool), jnp.zeros((shape[0],))
    initialized = {
      c.input_key: c.init_with_output(k, raw[c.input_key], drop)
      for k, c in zip(keys, self.conditioners, strict=False)
    }
    condition = merge([output for output, _ in initialized.values()])
    return {
      "unet": self.unet.init(key_unet, jnp.zeros(shape), t, condition),
      "conditioners": {
        name: variables for name, (_, variables) in initialized.items()
      },
    }
