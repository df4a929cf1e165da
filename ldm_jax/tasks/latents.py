"""What the second stage takes from the first: latents, and their scale."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.bottleneck import Gaussian, Point
from ldm_jax.pixels import to_float

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes
Which = Literal["sample", "mode"]


def latents_of(
  posterior: Gaussian | Point, noise: Array, which: Which
) -> Array:
  """A sample of the posterior, or its mode."""
  return posterior.mode() if which == "mode" else posterior.sample(noise)


def measured_scale(
  stage: Autoencoder,
  params: Any,
  batches: Iterable[Batch],
  key: Array,
  which: Which = "sample",
) -> float:
  """1 / std of latents over all elements of `batches`.

  LDM's scale_by_std (Rombach et al. 2022, appendix G), on more than one batch
  and the same wherever it is computed.
  """

  @jax.jit
  def moments(batch: Batch, key: Array) -> Array:
    images = to_float(batch["image"])
    posterior = stage.apply(params, images, method="encode")
    noise = jax.random.normal(key, posterior.mode().shape)
    latents = latents_of(posterior, noise, which)
    return jnp.stack([latents.mean(), jnp.square(latents).mean()])

  totals = [
    moments(batch, jax.random.fold_in(key, i))
    for i, batch in enumerate(batches)
  ]
  mean, square = sum(totals) / len(totals)
  return float(1.0 / jnp.sqrt(square - mean**2))
