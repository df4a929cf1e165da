"""The denoising objective: one loss per example."""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.prediction import Prediction, target, x0_gain
from ldm_jax.diffusion.schedule import Schedule, Time, q_sample
from ldm_jax.diffusion.time_densities import TimeDensity, draw_times
from ldm_jax.fields.limits import Positive

Network = Callable[[Float[Array, "b *rest"], Time], Float[Array, "b *rest"]]

Density = Literal["uniform", "logit_normal"] | TimeDensity


def sample_times(
  key: Array,
  schedule: Schedule,
  count: int,
  density: Density = "uniform",
  latent_size: tuple[int, int] | None = None,
) -> Float[Array, " b"]:
  """Training times t of a schedule of T steps.

  "uniform" is t ~ U{0, ..., T - 1}, whole numbers held as floats, and
  "logit_normal" floor(T sigmoid(n)), n standard normal. A `TimeDensity` draws
  continuous s in [0, 1], and t = T s - 1 from -1, the image, to T - 1.

  Args:
    latent_size: height and width, for a density whose shift depends on them.

  Raises:
    ValueError: the shift depends on the size, and there is none.
  """
  if not isinstance(density, str):
    times = draw_times(key, density, count, latent_size)
    return schedule.steps * times - 1
  if density == "logit_normal":
    fraction = jax.nn.sigmoid(jax.random.normal(key, (count,)))
    return jnp.floor(fraction * schedule.steps)
  return jax.random.randint(key, (count,), 0, schedule.steps).astype(
    jnp.float32
  )


def mean_over_times(
  loss_at: Callable[[Float[Array, " b"]], Float[Array, ""]],
  schedule: Schedule,
  times: tuple[float, ...],
  count: int,
) -> dict[str, Float[Array, ""]]:
  """Losses at fixed times, one after another: {"loss_at_S": ..., "loss": mean}.

  Args:
    loss_at: from t, the same for all examples, to their mean loss.
    times: S = (t + 1) / T; with a table of betas the first t is 0.
    count: of the examples.
  """
  t = schedule.steps * jnp.asarray(times) - 1
  t = t if schedule.is_flow else t.clip(0)
  losses = jax.lax.map(lambda each: loss_at(jnp.full(count, each)), t)
  found = {
    f"loss_at_{s:g}": loss for s, loss in zip(times, losses, strict=True)
  }
  return found | {"loss": losses.mean()}


@runtime_checkable
class Loss(Protocol):
  """The loss contract: any frozen dataclass with these members.

  Attributes:
    prediction: what the network predicts; as in the model.
    density: of the training times: a word, or a `TimeDensity`; see
      `sample_times`.
  """

  prediction: Prediction
  density: Density

  def __call__(
    self,
    schedule: Schedule,
    network: Network,
    x0: Float[Array, "b *rest"],
    t: Float[Array, " b"],
    noise: Float[Array, "b *rest"],
  ) -> Float[Array, " b"]:
    """Loss of every example, in float32.

    Args:
      network: (x_t, t) -> prediction, of x_t's shape.
    """
    ...


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
  """w_t |y(x0, eps, t) - network(x_t, t)|^p, averaged over each image.

  With prediction "eps", norm "l2" and no weighting this is L_simple (Ho et al.
  2020, eq. 14; Rombach et al. 2022, eq. 2).

  Attributes:
    density: of t: "uniform" and "logit_normal" are whole times; a
      `TimeDensity` such as `LogitNormalTimes(shift=3.0)` is of continuous
      times, as flows are trained. See `sample_times`.
    norm: "l2" squares the error, "l1" takes its absolute value (LDM's
      churches, layout and semantic-synthesis models).
    min_snr: gamma of Min-SNR weighting (Hang et al. 2023, eq. 8; they use 5):
      clips the weight of low noise at this signal-to-noise ratio, whatever the
      network predicts. None leaves the parameterization's own weighting.
  """

  prediction: Prediction = "eps"
  density: Density = "uniform"
  norm: Literal["l1", "l2"] = "l2"
  min_snr: Positive | None = None

  def __post_init__(self):
    if self.min_snr is not None and self.norm != "l2":
      raise ValueError(
        "min_snr weights squared errors and is undefined for norm='l1'; "
        "use norm='l2' or min_snr=None"
      )

  def __call__(
    self,
    schedule: Schedule,
    network: Network,
    x0: Float[Array, "b *rest"],
    t: Float[Array, " b"],
    noise: Float[Array, "b *rest"],
  ) -> Float[Array, " b"]:
    """The loss of every example, in float32.

    Args:
      network: (x_t, t) -> output in the parameterization `prediction`.
    """
    output = network(q_sample(schedule, x0, t, noise), t)
    error = target(self.prediction, schedule, x0, t, noise) - output
    error = error.astype(jnp.float32)
    powered = jnp.abs(error) if self.norm == "l1" else jnp.square(error)
    each = jnp.mean(powered.reshape(len(powered), -1), axis=1)
    return each if self.min_snr is None else each * self.weight(schedule, t)

  def weight(self, schedule: Schedule, t: Float[Array, " b"]) -> Time:
    """min(SNR_t, min_snr) (d x0 / d y)^2  (Hang et al. 2023, eq. 8).

    min(SNR, g) / SNR for eps, min(SNR, g) for x0, min(SNR, g) / (SNR + 1)
    for v.
    """
    clipped = jnp.minimum(schedule.snr(t), self.min_snr)
    return clipped * x0_gain(self.prediction, schedule, t) ** 2
