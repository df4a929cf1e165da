"""A sampler as data: a table of coefficients, and the scan that follows it.

Every sampler here evaluates the network at some noise level, and then combines
linearly what it has: x, the estimate (x0, eps), new noise, and a few tensors
kept from earlier rows. The coefficients depend on the noise levels alone. So a
sampler is a table of coefficients, computed on the host in float64, and one
scan runs every table: another sampler, another number of steps or another eta
compiles nothing.

A row is written over a basis, so that formulas read as in the papers:

  row(s, t, x=t.signal * X0 + t.sigma * EPS)          # DDIM
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ldm_jax.diffusion.prediction import Denoiser
from ldm_jax.diffusion.schedule import Level

CHUNK_ROWS = 10
REGISTERS = "xabcde"  # x, and five tensors that are kept from row to row

# The basis: X is the current x, A to E are the kept tensors, X0 and EPS the
# network's estimate, NOISE is standard normal.
X, A, B, C, D, E, X0, EPS, NOISE = np.eye(9)


class Row(NamedTuple):
  """One evaluation of the network and the update after it; or a table.

  A table is a `Row` whose arrays have a leading axis of rows; see `stack`.

  Attributes:
    level: the noise level of x, at which the network is evaluated.
    next_level: the noise level of x after the update.
    mix: [6, 9], the next registers over the basis.
    index: number of the row, from 0; it selects the row's noise.
    is_active: false in rows that only pad the last chunk.
  """

  # Any: float64 on the host, arrays on devices.
  level: Level
  next_level: Level
  mix: Any
  index: Any
  is_active: Any


# Applied to x after every row, such as to restore the known region of an image.
ReplaceKnown = Callable[
  [Float[Array, "b *rest"], Level], Float[Array, "b *rest"]
]


def row(level: Level, next_level: Level, **registers: np.ndarray) -> Row:
  """One row; registers that are not given keep their values.

  Args:
    registers: the new values of x and of a to e, over the basis.
  """
  mix = np.eye(len(REGISTERS), len(X))
  for name, value in registers.items():
    mix[REGISTERS.index(name)] = value
  return Row(level, next_level, mix, np.int32(0), np.bool_(True))


def stack(rows: Sequence[Row]) -> Row:
  """The table of a sampler's rows, numbered from 0.

  Raises:
    FloatingPointError: a coefficient is not finite.
  """
  if not all(np.isfinite(each.mix).all() for each in rows):
    raise FloatingPointError("a sampler's coefficients are not finite")
  table = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
  return table._replace(index=np.arange(len(rows), dtype=np.int32))


def split_table(table: Row, length: int = CHUNK_ROWS) -> Iterator[Row]:
  """Tables of `length` rows each; inactive rows pad the last one."""
  count = len(table.index)
  missing = -count % length
  pad = lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
  padded = jax.tree.map(pad, table)
  for start in range(0, count, length):
    rows = slice(start, start + length)
    yield jax.tree.map(operator.itemgetter(rows), padded)


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
  """x_T ~ N(0, I); independent of the noise that samplers add."""
  return normal(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), shape)


def init_registers(xt: Float[Array, "b *rest"]) -> Float[Array, "r b *rest"]:
  """The registers before the first row: x, and zeros."""
  dtype = jnp.promote_types(xt.dtype, jnp.float32)
  empty = jnp.zeros((len(REGISTERS) - 1, *xt.shape), dtype)
  return jnp.concatenate([xt.astype(dtype)[None], empty])


def run(
  denoise: Denoiser,
  state: Float[Array, "r b *rest"],
  table: Row,
  keys: Key[Array, " b"],
  replace_known: ReplaceKnown = lambda x, level: x,
) -> Float[Array, "r b *rest"]:
  """Follows every active row of `table` in one scan.

  Args:
    state: registers, from `init_registers` or from the chunk before; x is the
      first.
    keys: one per image; row i takes its noise from fold_in(key, 1 + i).
    replace_known: applied to x after every row, with the level x then has.
  """

  def advance(state: Array, each: Row) -> Array:
    return run_row(denoise, state, each, keys, replace_known)

  def body(state: Array, each: Row) -> tuple[Array, None]:
    return jax.lax.cond(
      each.is_active, advance, lambda state, _: state, state, each
    ), None

  table = jax.tree.map(
    lambda x: jnp.asarray(
      x, state.dtype if jnp.issubdtype(x.dtype, jnp.floating) else None
    ),
    table,
  )
  return jax.lax.scan(body, state, table)[0]


def run_row(
  denoise: Denoiser,
  state: Float[Array, "r b *rest"],
  each: Row,
  keys: Key[Array, " b"],
  replace_known: ReplaceKnown = lambda x, level: x,
) -> Float[Array, "r b *rest"]:
  """The registers after one row, active or not; see `run`."""
  x0, eps = denoise(state[0], each.level)
  row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + each.index)
  noise = normal(row_keys, state.shape[2:], state.dtype)
  basis = jnp.concatenate([state, jnp.stack([x0, eps, noise])])
  state = jnp.tensordot(each.mix, basis, 1, precision="highest")
  return state.at[0].set(replace_known(state[0], each.next_level))


def sample(
  denoise: Denoiser,
  xt: Float[Array, "b *rest"],
  table: Row,
  keys: Key[Array, " b"],
  replace_known: ReplaceKnown = lambda x, level: x,
) -> Float[Array, "b *rest"]:
  """The final x of a whole table in one scan, from x_T."""
  return run(denoise, init_registers(xt), table, keys, replace_known)[0]
