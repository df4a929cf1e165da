"""Statistics of a first stage's latents, by channel."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from ldm_jax.evaluation.metrics.radial_bands import latent_spectrum


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
  """Moments of latents, which are the modes of their posteriors.

  Attributes:
    mean, std: of each channel.
    kurtosis: of each channel, E (z - mean)^4 / std^4; 3 for a Gaussian.
    kl: KL(q(z | x) || N(0, 1)) of each channel in nats per latent number;
      None without Gaussian posteriors.
    spectrum: see `latent_spectrum`.
  """

  mean: Float[np.ndarray, " c"]
  std: Float[np.ndarray, " c"]
  kurtosis: Float[np.ndarray, " c"]
  kl: Float[np.ndarray, " c"] | None
  spectrum: dict[str, float]

  @classmethod
  def of(
    cls,
    latents: Float[np.ndarray, "n h w c"],
    logvar: Float[np.ndarray, "n h w c"] | None = None,
  ) -> "LatentStatistics":
    """Statistics over all images and positions.

    Args:
      latents: modes of the posteriors.
      logvar: of the posteriors, if they are Gaussian.
    """
    z = np.asarray(latents, np.float64)
    mean = z.mean((0, 1, 2))
    centred = z - mean
    variance = np.square(centred).mean((0, 1, 2))
    safe = np.where(variance > 0, variance, 1)
    kl = None
    if logvar is not None:
      s = np.asarray(logvar, np.float64)
      kl = 0.5 * (z * z + np.exp(s) - 1 - s).mean((0, 1, 2))
    return cls(
      mean,
      np.sqrt(variance),
      (centred**4).mean((0, 1, 2)) / safe**2,
      kl,
      latent_spectrum(latents),
    )

  def to_json(self) -> dict[str, Any]:
    """Lists of numbers by name."""
    values = dataclasses.asdict(self)
    return {
      name: value.tolist() if isinstance(value, np.ndarray) else value
      for name, value in values.items()
    }
