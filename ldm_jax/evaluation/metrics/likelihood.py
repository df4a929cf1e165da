"""Likelihood of data under a denoiser, by the probability flow ODE."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ldm_jax.diffusion.prediction import Denoiser
from ldm_jax.diffusion.schedule import Level, Schedule
from ldm_jax.nn.operators.choice import operators

# Of pixels in [-1, 1] with 256 levels: log2 of levels in a unit.
LEVELS = float(np.log2(127.5))


def log_likelihood(
  denoise: Denoiser,
  schedule: Schedule,
  x0: Float[Array, "b *rest"],
  steps: int = 100,
  key: Key[Array, ""] | None = None,
  probes: int = 1,
) -> Float[Array, " b"]:
  """ln p(x) of every example, in nats  (Song et al. 2021, eq. 39).

  With y = x / signal and r = sigma / signal the flow is dy / dr = eps, and
  ln p(y_r) falls along it by the divergence of eps. It is integrated from the
  noise of the first time to that of the last by the classical Runge-Kutta
  method in steps of equal ln r. The data are taken as x at the first time, and
  x at the last time is taken to be standard normal.

  Args:
    key: of the Rademacher probes that estimate the divergence (Hutchinson
      1990); None sums it exactly, with one pass for every dimension of x.
    probes: number of probes for each example.
  """
  path = _path(schedule, steps)
  size = x0[0].size
  shape, kind = (size, *x0.shape), x0.dtype
  if key is None:
    basis = jnp.eye(size, dtype=kind).reshape(size, 1, *x0.shape[1:])
    basis, count = jnp.broadcast_to(basis, shape), 1
  else:
    basis = jax.random.rademacher(key, (probes, *x0.shape), kind)
    count = probes

  def flow(y: Array, level: Level) -> tuple[Array, Array]:
    """dy / d ln r, and its divergence."""
    field = lambda y: level.ratio * denoise(level.signal * y, level).eps
    one = lambda v: jax.jvp(field, (y,), (v,))
    slopes, tangents = jax.vmap(one, out_axes=(None, 0))(basis)
    products = (basis * tangents).reshape(len(basis), len(y), -1).sum((0, 2))
    return slopes, products / count

  first, last = (jnp.asarray(path.signal[end], kind) for end in (0, -1))
  start = x0 / first, jnp.zeros(len(x0), kind)
  with operators("xla"):  # which have forward-mode derivatives
    y, change = _integrate(flow, start, path)
  left = (last * y).reshape(len(x0), -1)
  normal = -0.5 * (jnp.square(left) + jnp.log(2 * jnp.pi)).sum(1)
  # The density of y is that of x = signal y, times signal for every number.
  return normal + change + size * (jnp.log(last) - jnp.log(first))


def _integrate(
  flow: Callable[[Array, Level], tuple[Array, Array]],
  start: tuple[Array, Array],
  path: Level,
) -> tuple[Array, Array]:
  """Integrates a flow in ln r along a path (Runge-Kutta, fourth order)."""

  def advance(carry: tuple[Array, Array], triple: tuple[Level, Level, Level]):
    """One step, from the first of three levels to the last."""
    begin, middle, end = triple
    h = jnp.log(end.ratio / begin.ratio)
    move = lambda slopes, fraction: jax.tree.map(
      lambda at, slope: at + fraction * h * slope, carry, slopes
    )
    one = flow(carry[0], begin)
    two = flow(move(one, 0.5)[0], middle)
    three = flow(move(two, 0.5)[0], middle)
    four = flow(move(three, 1.0)[0], end)
    whole = jax.tree.map(
      lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, one, two, three, four
    )
    return move(whole, 1.0), None

  part = lambda *ends: Level(
    *(jnp.asarray(each[slice(*ends, 2)], start[0].dtype) for each in path)
  )
  triples = part(0, -2), part(1, None), part(2, None)
  return jax.lax.scan(advance, start, triples)[0]


def bits_per_dimension(
  nats: Float[Array, " b"],
  size: int,
  unit: Literal["pixel", "number"] = "pixel",
) -> Float[Array, " b"]:
  """-ln p in bits per dimension, of `size` dimensions.

  With unit "pixel", of pixels in [-1, 1] with 256 levels.
  """
  bits = -nats / (size * jnp.log(2.0))
  return bits + (LEVELS if unit == "pixel" else 0.0)


def _path(schedule: Schedule, steps: int) -> Level:
  """The levels between steps from the first time to the last, and the
  midpoints, equally spaced in ln r."""
  first, last = (
    schedule.level_at(t, least=1e-7) for t in (0, schedule.steps - 1)
  )
  ratios = np.geomspace(first.ratio, last.ratio, 2 * steps + 1)
  levels = [schedule.level_of_ratio(float(ratio)) for ratio in ratios]
  return Level(*map(np.array, zip(*levels, strict=True)))
