"""A regularizer: channels of latents that do not repeat each other."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.training.first_stage.regularizers import RegularizerInputs


@dataclasses.dataclass(frozen=True)
class Decorrelation:
  """Mean square of the correlations between different channels of latents.

  Attributes:
    weight: of the term.
  """

  weight: float = 1e-2
  is_adaptive = False

  def init(self, key: Array, task: Any, batch: Any) -> dict:
    """It has no parameters."""
    return {}

  def frozen_shapes(self, batch: Any) -> dict:
    """Nor any that are not trained."""
    return {}

  def load_frozen(self) -> dict:
    """None."""
    return {}

  def loss(
    self, inputs: RegularizerInputs, own: Any, frozen: Any
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss, and a metric."""
    latents = inputs.sampled_latents(inputs.key)
    rows = latents.reshape(-1, latents.shape[-1])
    rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-6)
    correlations = rows.T @ rows / len(rows)
    others = correlations * (1 - jnp.eye(len(correlations)))
    loss = jnp.square(others).mean()
    return loss, {"correlation": loss}
