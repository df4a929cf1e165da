"""Statistics of an autoencoder's latents, which normalise them.

A denoiser is trained on x0 = scale (z - mean) / std. The scale is the
`latent_scale` of a model's parameters; mean and std are here, and part of the
first stage's config, as in the config.json of published autoencoders.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural, Positive
from ldm_jax.nn.bottleneck import DeterministicPosterior, DiagonalGaussian
from ldm_jax.nn.first_stage import FirstStage, Posterior


@dataclasses.dataclass(frozen=True)
class LatentNormalization:
  """(z - mean) / std with fixed numbers.

  Attributes:
    mean: one number for all channels, diffusers' `shift_factor` (SD 3's is
      0.0609, FLUX.1's 0.1159), or one per channel, `latents_mean`.
    std: one number, or one per channel, `latents_std`.

  Raises:
    ValueError: there is no number, or an std that is not above 0.
  """

  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)

  def __post_init__(self):
    if not self.mean or not self.std:
      raise ValueError("mean and std need one number, or one per channel")
    if not all(math.isfinite(number) for number in (*self.mean, *self.std)):
      raise ValueError(f"mean {self.mean} and std {self.std} must be finite")
    if min(self.std) <= 0:
      raise ValueError(f"std must be above 0, got {min(self.std)}")

  def statistics(
    self, height: int, width: int, channels: int
  ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """mean and std, which broadcast to latents [b height width channels].

    Raises:
      ValueError: there are numbers for other than so many channels.
    """
    del height, width
    return _per_channel(self.mean, channels), _per_channel(self.std, channels)


@dataclasses.dataclass(frozen=True)
class BatchStatistics:
  """(z - mean) / sqrt(variance + epsilon) over patches of latents.

  FLUX.2's: a batch norm without a learned scale over the channels of
  patch x patch latents, which keeps the averages of its training.

  Attributes:
    mean, variance: of channel c at row i and column j of a patch, at position
      (c patch + i) patch + j.
    patch: side of a patch.
    batches: that the averages were taken over, as its file stores it.

  Raises:
    ValueError: mean and variance differ in length, or a variance is negative.
  """

  mean: tuple[float, ...] = ()
  variance: tuple[float, ...] = ()
  patch: Count = 2
  epsilon: Positive = 1e-4
  batches: Natural = 0

  def __post_init__(self):
    if len(self.mean) != len(self.variance):
      raise ValueError(
        f"{len(self.mean)} means, but {len(self.variance)} variances"
      )
    if any(not v >= 0 for v in self.variance):
      raise ValueError(f"a variance is negative: {min(self.variance)}")

  def statistics(
    self, height: int, width: int, channels: int
  ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """mean and std [height width channels]; patches begin at the top left.

    Raises:
      ValueError: they are of another number of channels.
    """
    patch = self.patch
    if len(self.mean) != channels * patch**2:
      raise ValueError(
        f"statistics of {len(self.mean)} channels; latents of {channels} "
        f"channels in patches of {patch} x {patch} need {channels * patch**2}"
      )

    def spread(values: Sequence[float]) -> Array:
      array = jnp.asarray(values, jnp.float32)
      tile = array.reshape(channels, patch, patch).transpose(1, 2, 0)
      repeats = -(-height // patch), -(-width // patch), 1
      return jnp.tile(tile, repeats)[:height, :width]

    std = [math.sqrt(v + self.epsilon) for v in self.variance]
    return spread(self.mean), spread(std)


Normalization = LatentNormalization | BatchStatistics


def _per_channel(values: Sequence[float], channels: int) -> Array:
  if len(values) not in (1, channels):
    raise ValueError(
      f"{len(values)} numbers for latents of {channels} channels; needed are "
      f"1 or {channels}"
    )
  return jnp.asarray(values, jnp.float32)


def normalize(stage: FirstStage, posterior: Posterior) -> Posterior:
  """The posterior of (z - mean) / std, by the first stage's statistics.

  A first stage without a `normalization` leaves it as it is.
  """
  found = _statistics(stage, posterior.mode())
  if found is None:
    return posterior
  mean, std = found
  centred = (posterior.mean - mean) / std
  if isinstance(posterior, DiagonalGaussian):
    return DiagonalGaussian(centred, posterior.logvar - 2 * jnp.log(std))
  return DeterministicPosterior(centred)


def denormalize(
  stage: FirstStage, latents: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """The inverse: std latents + mean, which `stage.decode` takes."""
  found = _statistics(stage, latents)
  return latents if found is None else latents * found[1] + found[0]


def _statistics(stage: FirstStage, latents: Array) -> tuple[Any, Any] | None:
  normalization = getattr(stage, "normalization", None)
  if normalization is None:
    return None
  return normalization.statistics(*latents.shape[1:])
