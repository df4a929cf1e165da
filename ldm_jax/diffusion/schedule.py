"""Noise schedules: tables of alpha-bar, and the noise levels of times."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count

Time = Float[Array, ""] | Float[Array, " b"]

CLEAN_TIME = -1.0  # time of the image itself, without noise: alpha-bar is 1
MIN_ALPHA_BAR = 2.0**-24  # in place of 0 where a sampler divides by alpha-bar


class Level(NamedTuple):
  """The noise level of x = signal x0 + sigma eps, and the time of a network.

  Attributes:
    time: t in [0, T) that the network is given, whole or between.
    signal, sigma: sqrt(ab) and sqrt(1 - ab).
  """

  # Any: float64 on the host, arrays on devices; one, or one per step.
  time: Any
  signal: Any
  sigma: Any

  @property
  def ratio(self) -> Any:
    """sigma / signal: the noise relative to an image that is not scaled.

    Karras et al. 2022 and k-diffusion call it sigma.
    """
    return self.sigma / self.signal

  @property
  def is_noise(self) -> bool:
    """Whether it is pure noise; host only."""
    return bool(self.signal**2 <= 1.001 * MIN_ALPHA_BAR)

  @property
  def flow_time(self) -> Any:
    """s of the straight line z = (1 - s) x0 + s eps at this ratio.

    x is z (signal + sigma)  (Liu et al. 2023, eq. 1).
    """
    return self.sigma / (self.signal + self.sigma)

  @property
  def half_log_snr(self) -> Any:
    """lambda = ln(signal / sigma)  (Lu et al. 2022, section 2.1); host only."""
    return np.log(self.signal) - np.log(self.sigma)


def _scaled_linear(start: float, end: float, steps: int) -> np.ndarray:
  return np.linspace(start**0.5, end**0.5, steps) ** 2


def _sqrt(start: float, end: float, steps: int) -> np.ndarray:
  return np.linspace(start, end, steps) ** 0.5


def _cosine(start: float, end: float, steps: int) -> np.ndarray:
  """Nichol and Dhariwal 2021, eq. 17; start and end are not used."""
  del start, end
  angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
  alpha_bar = np.cos(angle) ** 2
  return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)


def _rectified_flow(start: float, end: float, steps: int) -> np.ndarray:
  """Of (1 - s) x0 + s eps, s = 1/steps to 1; start and end are not used."""
  del start, end
  s = np.arange(steps + 1) / steps
  alpha_bar = (1 - s) ** 2 / ((1 - s) ** 2 + s**2)
  return 1 - alpha_bar[1:] / alpha_bar[:-1]


_BETAS = {
  "scaled_linear": _scaled_linear,
  "linear": np.linspace,
  "sqrt": _sqrt,
  "cosine": _cosine,
  "rectified_flow": _rectified_flow,
}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """q(x_t | x_0) = N(sqrt(ab_t) x_0, (1 - ab_t) I)  (Ho et al. 2020, eq. 4).

  Time is in [0, steps); 0 is the least noisy. Between whole numbers log
  alpha-bar is interpolated, and t = -1 is the clean image itself, where
  samplers may end. A rectified flow is exact at every t in [-1, steps - 1],
  s = (t + 1) / steps being its continuous time.

  Attributes:
    kind: how beta_t rises from `start` to `end`. LDM and Stable Diffusion call
      "scaled_linear" (linear in sqrt(beta)) "linear", and DDPM's "linear"
      "sqrt_linear". "cosine" and "rectified_flow" ignore both ends: the
      straight line (1 - s) x0 + s eps (Liu et al. 2023), divided by its
      deviation sqrt((1 - s)^2 + s^2), is a process like the others, and DDIM's
      step along it is Euler's step along the line.
    zero_terminal_snr: shift and scale sqrt(ab) so that x_{T-1} is pure noise
      and x_0 unchanged (Lin et al. 2023, algorithm 1).
  """

  kind: Literal[
    "scaled_linear", "linear", "sqrt", "cosine", "rectified_flow"
  ] = "scaled_linear"
  start: float = 0.00085
  end: float = 0.012
  steps: Count = 1000
  zero_terminal_snr: bool = False

  def __post_init__(self):
    if self.steps < 2:
      raise ValueError(f"schedule steps must be at least 2, got {self.steps}")
    if not 0 < self.start <= self.end < 1:
      raise ValueError(
        "schedule needs 0 < start <= end < 1, got "
        f"start={self.start} end={self.end}"
      )

  @property
  def has_zero_terminal_snr(self) -> bool:
    """Whether x is pure noise at the last time."""
    return self.zero_terminal_snr or self.is_flow

  @property
  def is_flow(self) -> bool:
    """Whether it is the straight line, with a continuous time s."""
    return self.kind == "rectified_flow"

  @functools.cached_property
  def betas(self) -> np.ndarray:
    """beta_t before any rescaling, float64 [steps]."""
    return _BETAS[self.kind](self.start, self.end, self.steps)

  @functools.cached_property
  def alpha_bar(self) -> np.ndarray:
    """Float64 [steps]; a float32 product of 1,000 factors is off by 2e-6."""
    alpha_bar = np.cumprod(1.0 - self.betas)
    if not self.zero_terminal_snr:
      return alpha_bar
    signal = np.sqrt(alpha_bar)
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)) ** 2

  @functools.cached_property
  def _log_alpha_bar(self) -> np.ndarray:
    """Float64 [steps + 1]: entry t + 1 belongs to time t, entry 0 to clean."""
    with np.errstate(divide="ignore"):  # zero terminal SNR ends at -inf
      return np.concatenate([[0.0], np.log(self.alpha_bar)])

  @functools.cached_property
  def _floored(self) -> tuple[np.ndarray, np.ndarray]:
    """Times from -1 on, and ln(ab) there, at least ln(MIN_ALPHA_BAR)."""
    table = np.maximum(self._log_alpha_bar, np.log(MIN_ALPHA_BAR))
    return np.arange(len(table)) - 1.0, table

  def log_alpha_bar(self, t: Time) -> Time:
    """ln(ab_t) for t in [-1, steps - 1], in t's format (float32 at least)."""
    dtype = jnp.promote_types(t.dtype, jnp.float32)
    if self.is_flow:
      t = jnp.clip(t.astype(dtype), CLEAN_TIME, self.steps - 1)
      return -jnp.log1p(jnp.square((t + 1) / (self.steps - 1 - t)))
    table = jnp.asarray(self._log_alpha_bar, dtype)
    index = t.astype(dtype) + 1
    low = jnp.clip(jnp.floor(index), 0, self.steps).astype(jnp.int32)
    before = table[low]
    after = table[jnp.minimum(low + 1, self.steps)]
    fraction = index - low
    between = before + fraction * (after - before)
    # Towards ab = 0 the logarithm has no finite slope; the signal has one.
    vanishing = before + 2 * jnp.log1p(-jnp.clip(fraction, 0, 1))
    between = jnp.where(jnp.isfinite(after), between, vanishing)
    return jnp.where(fraction == 0, before, between)

  def level(self, t: Time) -> Level:
    """The level of time t, in t's format (float32 at least)."""
    return Level(t, *self.signal_and_sigma(t))

  def level_at(self, t: float | int, least: float = 0.0) -> Level:
    """`level` on the host, in float64.

    Args:
      least: alpha-bar is this at least. Between whole numbers of a table it is
        never below `MIN_ALPHA_BAR`, for a logarithm of 0 cannot be
        interpolated.
    """
    if self.is_flow:
      with np.errstate(divide="ignore"):  # s = 1 is pure noise
        ratio = np.float64(t + 1) / (self.steps - 1 - t)
      log_alpha_bar = -np.log1p(np.square(ratio))
    elif t == int(t):
      log_alpha_bar = self._log_alpha_bar[int(t) + 1]
    else:
      times, table = self._floored
      log_alpha_bar = np.interp(t, times, table)
    if least:
      log_alpha_bar = np.maximum(log_alpha_bar, np.log(least))
    return _host_level(t, log_alpha_bar)

  def level_of_ratio(self, ratio: float | int) -> Level:
    """The level where sigma / signal is `ratio`, in float64.

    Beyond the ends of the table its time is that of the end; a rectified flow
    has a time for every ratio.
    """
    log_alpha_bar = -np.log1p(np.square(ratio))
    if self.is_flow:
      time = self.steps * (ratio / (1 + ratio)) - 1
      return _host_level(time, log_alpha_bar)
    times, table = self._floored
    time = np.interp(-log_alpha_bar, -table[1:], times[1:])
    return _host_level(time, log_alpha_bar)

  def signal_and_sigma(self, t: Time) -> tuple[Time, Time]:
    """sqrt(ab_t) and sqrt(1 - ab_t), accurate where 1 - ab_t is tiny."""
    log_alpha_bar = self.log_alpha_bar(t)
    return jnp.exp(0.5 * log_alpha_bar), jnp.sqrt(-jnp.expm1(log_alpha_bar))

  def snr(self, t: Time) -> Time:
    """ab_t / (1 - ab_t)."""
    signal, sigma = self.signal_and_sigma(t)
    return (signal / sigma) ** 2


def _host_level(t: float | int, log_alpha_bar: np.float64) -> Level:
  return Level(
    np.float64(t),
    np.exp(0.5 * log_alpha_bar),
    np.sqrt(-np.expm1(log_alpha_bar)),
  )


def append_dims(
  scale: Float[Array, "..."], x: Float[Array, "b *rest"]
) -> Float[Array, "..."]:
  """A number per image, or one for all, with axes to multiply images."""
  return (
    scale.reshape(scale.shape + (1,) * (x.ndim - 1)) if scale.ndim else scale
  )


def q_sample(
  schedule: Schedule,
  x0: Float[Array, "b *rest"],
  t: Time,
  noise: Float[Array, "b *rest"],
) -> Float[Array, "b *rest"]:
  """x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t) noise  (Ho et al. 2020, eq. 4).

  Args:
    x0: latents of about unit variance; see `LatentDiffusion.encode`.
    t: time in [0, T); T - 1 is almost pure noise.
    noise: standard normal, same shape as x0.
  """
  signal, sigma = schedule.signal_and_sigma(t)
  return append_dims(signal, x0) * x0 + append_dims(sigma, x0) * noise


def posterior(
  schedule: Schedule,
  x0: Float[Array, "b *rest"],
  xt: Float[Array, "b *rest"],
  t: Time,
  s: Time,
) -> tuple[Float[Array, "b *rest"], Time]:
  """Mean and variance of q(x_s | x_t, x_0), s < t  (Ho et al. 2020, eq. 7).

  The paper's case is s = t - 1; any earlier s follows from the same two
  Gaussians with alpha_t replaced by ab_t / ab_s. s = -1 gives x_0 itself.
  """
  log_t, log_s = schedule.log_alpha_bar(t), schedule.log_alpha_bar(s)
  alpha, beta = jnp.exp(log_t - log_s), -jnp.expm1(log_t - log_s)
  noise_t, noise_s = -jnp.expm1(log_t), -jnp.expm1(log_s)
  from_x0 = jnp.exp(0.5 * log_s) * beta / noise_t
  from_xt = jnp.sqrt(alpha) * noise_s / noise_t
  mean = append_dims(from_x0, x0) * x0 + append_dims(from_xt, xt) * xt
  return mean, beta * noise_s / noise_t
