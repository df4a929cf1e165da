"""From x_T to x_0: a grid of times, one step function, one scan.

A sampler is a function (denoise, xt, row, noise) -> x_s over one `Row` of the
time grid. The scan runs over a chunk of fixed length whose tail may be
masked; the host strings chunks together, so the number of steps is data and
never recompiles anything.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ldm_jax.diffusion.prediction import Denoiser
from ldm_jax.diffusion.schedule import CLEAN, Schedule, like, posterior

Grid = Literal["leading", "trailing", "linspace"]
CHUNK = 10


class Row(NamedTuple):
  """One step of a sampler, or a stack of them.

  Attributes:
    time: t, where the network is asked.
    next_time: s < t, where the step lands; -1 is the clean image.
    index: counts steps from 0 and names the step's noise.
    is_active: false in the tail that fills the last chunk.
  """

  time: Float[Array, "*n"] | np.ndarray
  next_time: Float[Array, "*n"] | np.ndarray
  index: Int[Array, "*n"] | np.ndarray
  is_active: Bool[Array, "*n"] | np.ndarray


Step = Callable[[Denoiser, Array, Row, Array], Array]


def times(steps: int, grid: Grid, total: int = 1000) -> np.ndarray:
  """`steps` falling times in [0, total), float64.

  "leading" is LDM's uniform grid (50 of 1000: 981, 961, ..., 1), here spread
  evenly for every number of steps, which the original is only for divisors
  and cannot do at all for 599 of them. "trailing" starts at total - 1 (Lin et
  al. 2023, table 2); "linspace" includes both ends and is not rounded.

  Raises:
    ValueError: unless 1 <= steps <= total.
  """
  if not 1 <= steps <= total:
    raise ValueError(
      f"steps must be between 1 and {total} (the length of the noise "
      f"schedule), got {steps}"
    )
  if grid == "linspace":
    return np.linspace(total - 1, 0, steps)
  if grid == "trailing":
    return np.round(total - np.arange(steps) * total / steps) - 1
  rising = np.arange(steps) * total // steps
  offset = min(1, total - 1 - rising[-1])  # LDM's +1, where there is room
  return (rising + offset)[::-1].astype(np.float64)


def rows(grid: np.ndarray, landing: float = CLEAN) -> Row:
  """One row per time; the last step lands on the clean image, or earlier."""
  count = len(grid)
  return Row(
    grid,
    np.append(grid[1:], landing),
    np.arange(count, dtype=np.int32),
    np.ones(count, bool),
  )


def chunks(plan: Row, length: int = CHUNK) -> Iterator[Row]:
  """Cuts a plan into pieces of `length` rows; masked ones fill the last."""
  count = len(plan.time)
  padding = -count % length
  padded = [np.pad(column, (0, padding)) for column in plan]
  for start in range(0, count, length):
    yield Row(*(column[start : start + length] for column in padded))


def image_keys(
  key: Key[Array, ""], indices: Int[Array, " b"]
) -> Key[Array, " b"]:
  """A key per image, a function of (key, index) alone, not of the batch."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def normal(
  keys: Key[Array, " b"], shape: tuple[int, ...], dtype=jnp.float32
) -> Float[Array, "b ..."]:
  """Standard normal noise of `shape` for every image from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def initial_noise(
  keys: Key[Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
  """x_T ~ N(0, I); the samplers' own noise never meets this stream."""
  return normal(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), shape)


def run(
  step: Step,
  denoise: Denoiser,
  xt: Float[Array, "b *rest"],
  plan: Row,
  keys: Key[Array, " b"],
) -> Float[Array, "b *rest"]:
  """Applies `step` to every active row of `plan` in one scan.

  Args:
    xt: at time plan.time[0], in float32 or better.
    keys: one per image; step i of it draws from fold_in(key, 1 + i).
  """

  def advance(xt: Array, row: Row) -> Array:
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + row.index)
    noise = normal(step_keys, xt.shape[1:], xt.dtype)
    return step(denoise, xt, row, noise)

  def body(xt: Array, row: Row) -> tuple[Array, None]:
    return jax.lax.cond(row.is_active, advance, lambda xt, _: xt, xt, row), None

  dtype = jnp.promote_types(xt.dtype, jnp.float32)
  plan = Row(*map(jnp.asarray, plan))
  plan = plan._replace(
    time=plan.time.astype(dtype), next_time=plan.next_time.astype(dtype)
  )
  return jax.lax.scan(body, xt.astype(dtype), plan)[0]


def ddim(schedule: Schedule, eta: Float[Array, ""] | float = 0.0) -> Step:
  """DDIM (Song et al. 2021, eq. 12 and 16), eta traced.

  x_s = sqrt(ab_s) x0 + sqrt(1 - ab_s - std^2) eps + std noise, with
  std = eta sqrt((1 - ab_s) / (1 - ab_t)) sqrt(1 - ab_t / ab_s). eta 0 is
  deterministic, eta 1 is ancestral sampling.
  """

  def step(denoise: Denoiser, xt: Array, row: Row, noise: Array) -> Array:
    x0, eps = denoise(xt, row.time)
    signal, sigma = schedule.signal_and_sigma(row.next_time)
    _, variance = posterior(schedule, x0, xt, row.time, row.next_time)
    std = eta * jnp.sqrt(variance)
    along = jnp.sqrt(jnp.maximum(sigma**2 - std**2, 0))
    return signal * x0 + along * eps + std * noise

  return step


def ddpm(schedule: Schedule, eta: Float[Array, ""] | float = 1.0) -> Step:
  """Ancestral sampling: x_s ~ q(x_s | x_t, x0)  (Ho et al. 2020, alg. 2).

  `eta` scales the noise, the paper's being 1. The variance is the posterior's
  (beta-tilde, LDM's choice), for any pair of times, so fewer steps than the
  schedule has are lawful; the step to the clean image adds none.
  """

  def step(denoise: Denoiser, xt: Array, row: Row, noise: Array) -> Array:
    x0, _ = denoise(xt, row.time)
    mean, variance = posterior(schedule, x0, xt, row.time, row.next_time)
    return mean + eta * like(jnp.sqrt(variance), xt) * noise

  return step


SAMPLERS = {"ddim": ddim, "ddpm": ddpm}
