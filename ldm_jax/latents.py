"""Latents of a batch for the second stage, and their scale factor."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldm_jax.errors import ConfigError, NonFinite
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.first_stage import FirstStage, Posterior
from ldm_jax.nn.latent_normalization import normalize
from ldm_jax.nn.operators.choice import operators_of
from ldm_jax.pixels import to_float
from ldm_jax.runtime.stored_programs import StoredProgram

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes
LatentChoice = Literal["sample", "mode"]


def image_shape(stage: FirstStage, batch: Batch) -> tuple[int, ...]:
  """[b, H, W, 3] of a batch's images, also where only moments are cached."""
  if "moments" not in batch:
    return tuple(batch["image"].shape)
  count, height, width, _ = batch["moments"].shape
  return count, height * stage.stride, width * stage.stride, 3


def check_image_size(
  model: LatentDiffusion, height: int, width: int, window: int | None = None
) -> None:
  """Raises ValueError for images, in pixels, that the networks do not take.

  Args:
    window: side of the windows in which images are denoised, if they are.
  """
  unit = model.size_multiple
  for side in (height, width):
    if side % unit or side < 1:
      raise ValueError(
        f"images of {height} x {width}: the networks halve them to a {unit}th; "
        f"try {max(unit, round(side / unit) * unit)} in place of {side}"
      )
  most = getattr(model.unet, "largest_side", None)
  if most is None:
    return
  most = most * model.first_stage.stride
  if min(max(height, width), window or math.inf) > most:
    raise ValueError(
      f"images of {height} x {width}: the network has positions for at most "
      f"{most} pixels per side; give a smaller size, or a window (--window)"
    )


def latent_shape(stage: FirstStage, batch: Batch) -> tuple[int, ...]:
  """[b, h, w, c] of a batch's latents."""
  count, height, width, _ = image_shape(stage, batch)
  return count, *stage.latent_shape(height, width)


def encode_batch(stage: FirstStage, params: Any, batch: Batch) -> Posterior:
  """q(z | x) of a batch, from cached moments or by the first stage.

  Of latents that are normalised, if the first stage has a `normalization`.
  """
  return normalize(stage, encode_raw(stage, params, batch))


def encode_raw(stage: FirstStage, params: Any, batch: Batch) -> Posterior:
  """The same of the encoder's own latents, which are not normalised."""
  if "moments" in batch:
    return stage.posterior(batch["moments"])
  images = to_float(batch["image"])
  return stage.apply(params, images, method="encode")


def select_latents(
  posterior: Posterior,
  noise: Array,
  which: LatentChoice,
) -> Array:
  """A sample of the posterior, or its mode."""
  return posterior.mode() if which == "mode" else posterior.sample(noise)


def known_latent_scale(task: Any) -> float | None:
  """What latents of a task's `autoencoder` are multiplied by for a denoiser.

  None where it is measured; a distilled autoencoder's are scaled already.
  """
  return getattr(task, "autoencoder_scale", None)


def check_encoder(task: Any) -> None:
  """Raises ConfigError if a task trains a decoder alone, for previews."""
  if not getattr(task, "trains_encoder", True):
    raise ConfigError(
      "the run trained a decoder for previews and no encoder, so it encodes no "
      "images; train one with trains_encoder=True "
      "(--config.task.trains_encoder=True)"
    )


def measure_latent_scale(
  stage: FirstStage,
  params: Any,
  batches: Iterable[Batch],
  key: Array,
  which: LatentChoice = "sample",
) -> float:
  """1 / std of latents over all elements of `batches`.

  LDM's scale_by_std (Rombach et al. 2022, appendix G), over several batches,
  and the same for any number of devices.

  Raises:
    NonFinite: the variance of the latents is 0 or not finite.
  """

  @jax.jit
  def moments(params: Any, batch: Batch, key: Array) -> Array:
    posterior = encode_batch(stage, params, batch)
    noise = jax.random.normal(key, posterior.mode().shape)
    latents = select_latents(posterior, noise, which)
    return jnp.stack([latents.mean(), jnp.square(latents).mean()])

  parts = "moments of latents", stage, which
  program = StoredProgram(moments, parts, operators_of(*parts))
  totals = [
    program(params, batch, jax.random.fold_in(key, i))
    for i, batch in enumerate(batches)
  ]
  mean, square = (float(total) for total in sum(totals) / len(totals))
  variance = square - mean**2
  if not 0 < variance < math.inf:
    raise NonFinite(
      f"the latents' variance is {variance:g}, and must be finite and above 0; "
      "train the first stage again, or longer"
    )
  return variance**-0.5
