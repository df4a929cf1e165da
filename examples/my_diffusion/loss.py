"""A loss: Huber's instead of squared errors."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.loss import Density, Network
from ldm_jax.diffusion.prediction import Prediction, target
from ldm_jax.diffusion.schedule import Schedule, q_sample


@dataclasses.dataclass(frozen=True)
class HuberLoss:
  """min(e^2 / 2, delta (|e| - delta / 2)), averaged over each image.

  Attributes:
    prediction: what the network predicts; the same as the model's.
    density: of the training times.
    delta: errors above it count linearly.
  """

  prediction: Prediction = "eps"
  density: Density = "uniform"
  delta: float = 1.0

  def __call__(
    self,
    schedule: Schedule,
    network: Network,
    x0: Float[Array, "b *rest"],
    t: Float[Array, " b"],
    noise: Float[Array, "b *rest"],
  ) -> Float[Array, " b"]:
    """Loss of every example."""
    output = network(q_sample(schedule, x0, t, noise), t)
    error = target(self.prediction, schedule, x0, t, noise) - output
    size = jnp.abs(error.astype(jnp.float32))
    small = jnp.minimum(size, self.delta)
    loss = small * (size - small / 2)
    return loss.reshape(len(loss), -1).mean(axis=1)
