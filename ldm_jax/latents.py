"""What the second stage takes from the first: latents, and their scale."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldm_jax.errors import NonFinite
from ldm_jax.nn.autoencoder import FirstStage
from ldm_jax.nn.bottleneck import DeterministicPosterior, DiagonalGaussian
from ldm_jax.pixels import to_float

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes
LatentChoice = Literal["sample", "mode"]


def image_shape(stage: FirstStage, batch: Batch) -> tuple[int, ...]:
  """[b, H, W, 3] of the images behind a batch, cached ones among them."""
  if "moments" not in batch:
    return tuple(batch["image"].shape)
  count, height, width, _ = batch["moments"].shape
  return count, height * stage.stride, width * stage.stride, 3


def latent_shape(stage: FirstStage, batch: Batch) -> tuple[int, ...]:
  """[b, h, w, c] of a batch's latents."""
  count, height, width, _ = image_shape(stage, batch)
  return count, *stage.latent_shape(height, width)


def encode_batch(
  stage: FirstStage, params: Any, batch: Batch
) -> DiagonalGaussian | DeterministicPosterior:
  """q(z | x) of a batch, as it was cached or by the first stage."""
  if "moments" in batch:
    return stage.bottleneck.posterior(batch["moments"])
  images = to_float(batch["image"])
  return stage.apply(params, images, method="encode")


def posterior_moments(
  posterior: DiagonalGaussian | DeterministicPosterior,
) -> Array:
  """What `encode_batch` makes the posterior of again, [b h w k]."""
  if isinstance(posterior, DeterministicPosterior):
    return posterior.mean
  return jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)


def select_latents(
  posterior: DiagonalGaussian | DeterministicPosterior,
  noise: Array,
  which: LatentChoice,
) -> Array:
  """A sample of the posterior, or its mode."""
  return posterior.mode() if which == "mode" else posterior.sample(noise)


def measure_latent_scale(
  stage: FirstStage,
  params: Any,
  batches: Iterable[Batch],
  key: Array,
  which: LatentChoice = "sample",
) -> float:
  """1 / std of latents over all elements of `batches`.

  LDM's scale_by_std (Rombach et al. 2022, appendix G), on more than one batch
  and the same wherever it is computed.

  Raises:
    NonFinite: there is none.
  """

  @jax.jit
  def moments(batch: Batch, key: Array) -> Array:
    posterior = encode_batch(stage, params, batch)
    noise = jax.random.normal(key, posterior.mode().shape)
    latents = select_latents(posterior, noise, which)
    return jnp.stack([latents.mean(), jnp.square(latents).mean()])

  totals = [
    moments(batch, jax.random.fold_in(key, i))
    for i, batch in enumerate(batches)
  ]
  mean, square = (float(total) for total in sum(totals) / len(totals))
  variance = square - mean**2
  if not 0 < variance < math.inf:
    raise NonFinite(
      f"the latents' standard deviation is the root of {variance:g}; a first "
      "stage of such latents has nothing to learn from"
    )
  return variance**-0.5
