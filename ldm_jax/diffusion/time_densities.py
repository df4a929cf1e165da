"""Densities of the times at which a flow is trained (Esser et al. 2024, 3.1).

Each is a dataclass that turns uniform numbers u into continuous times s in
[0, 1], 0 the image and 1 pure noise; t = T s - 1 is the time of a `Schedule`
of T steps, and need not be whole. The strings "uniform" and "logit_normal"
draw whole times t, as DDPM does; see `loss.sample_times`.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.diffusion.shift import (
  Shift,
  check_finite,
  check_shift,
  resolved_shift,
  shift_time,
)
from ldm_jax.fields.limits import Positive


@runtime_checkable
class TimeDensity(Protocol):
  """A density of times s in [0, 1].

  Attributes:
    shift: applied to the times; see `shift.shift_time`.
  """

  shift: Shift

  def from_uniform(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """Times before the shift, from u ~ U(0, 1)."""
    ...


@dataclasses.dataclass(frozen=True)
class UniformTimes:
  """s ~ U(0, 1): the plain rectified flow  (Liu et al. 2023).

  Attributes:
    shift: a number, or by the size of the latents.
  """

  shift: Shift = 1.0

  def __post_init__(self):
    check_shift(self.shift)

  def from_uniform(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """u itself."""
    return u


@dataclasses.dataclass(frozen=True)
class LogitNormalTimes:
  """ln(s / (1 - s)) ~ N(location, scale^2)  (Esser et al. 2024, eq. 19).

  The defaults are rf/lognorm(0.00, 1.00), with which SD3 is trained; SD3
  shifts the times by 3 at 1024 x 1024 pixels.

  Attributes:
    location: of the normal; above 0 is towards noise.
    scale: of the normal, its standard deviation.
    shift: a number, or by the size of the latents.
  """

  location: float = 0.0
  scale: Positive = 1.0
  shift: Shift = 1.0

  def __post_init__(self):
    check_shift(self.shift)
    check_finite(self, "location", "scale")
    if not self.scale > 0:
      raise ValueError(
        f"scale of a logit-normal must be above 0, got {self.scale}"
      )

  def from_uniform(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """The quantile of u."""
    # The normal's quantile is infinite at 0, which u may be.
    u = jnp.clip(u, jnp.finfo(u.dtype).tiny, None)
    return jax.nn.sigmoid(
      self.location + self.scale * jax.scipy.special.ndtri(u)
    )


MOST_TAILED = 2 / (math.pi - 2)  # of `ModeTimes`, beyond it times turn back


@dataclasses.dataclass(frozen=True)
class ModeTimes:
  """Mode sampling with heavy tails  (Esser et al. 2024, eq. 20).

  s = 1 - u - scale (cos^2(pi u / 2) - 1 + u), for -1 <= scale <= 2 / (pi - 2),
  between which it falls with u. Above 0 the middle is favoured, below 0 the
  ends are; 0 is uniform. Their table 1 has 1.29.

  Attributes:
    scale: of the deviation from uniform times.
    shift: a number, or by the size of the latents.
  """

  scale: float = 1.29
  shift: Shift = 1.0

  def __post_init__(self):
    check_shift(self.shift)
    if not -1 <= self.scale <= MOST_TAILED:
      raise ValueError(
        f"scale of mode sampling must be -1 to {MOST_TAILED:.4f}, got "
        f"{self.scale}"
      )

  def from_uniform(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """Times that fall with u."""
    bend = jnp.square(jnp.cos(math.pi / 2 * u)) - 1 + u
    return jnp.clip(1 - u - self.scale * bend, 0, 1)


@dataclasses.dataclass(frozen=True)
class CosMapTimes:
  """The cosine schedule's log-SNR on the straight line.

  s = 1 - 1 / (tan(pi u / 2) + 1), of density 2 / (pi - 2 pi s + 2 pi s^2)
  (Esser et al. 2024, eq. 21 and 22).

  Attributes:
    shift: a number, or by the size of the latents.
  """

  shift: Shift = 1.0

  def __post_init__(self):
    check_shift(self.shift)

  def from_uniform(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """The quantile of u."""
    angle = math.pi / 2 * u
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return sine / (sine + cosine)  # tan / (tan + 1), finite at 1 too


def draw_times(
  key: Array,
  density: TimeDensity,
  count: int,
  latent_size: tuple[int, int] | None = None,
) -> Float[Array, " b"]:
  """s in [0, 1] of a density, shifted.

  Args:
    latent_size: height and width, of a shift that depends on them.

  Raises:
    ValueError: the shift depends on the size, and there is none.
  """
  shift = resolved_shift(density.shift, latent_size)
  return shift_time(
    density.from_uniform(jax.random.uniform(key, (count,))), shift
  )
