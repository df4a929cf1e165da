"""A sampler as data: rows of numbers, and the one scan that follows them.

Whatever its name, a sampler asks the network at some level, and then mixes
what it has: the point x it asked at, the answer (x0, eps), fresh noise, and a
few tensors it kept. All mixing is linear, with numbers that depend on the grid
alone. So a sampler is a table of such numbers, made on the host in float64,
and one scan runs all of them: neither another sampler nor other steps, nor
another eta compile anything.

In a row the basis is written out, so formulas read as in the papers:

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
REGISTERS = "xabcde"  # x and what is kept beside it from row to row

# The basis. X is the point asked at; A to E are kept; X0, EPS are the answer.
X, A, B, C, D, E, X0, EPS, NOISE = np.eye(9)


class Row(NamedTuple):
  """One question to the network and what follows, or a stack of them.

  Attributes:
    level: the level of x, at which the network is evaluated.
    next_level: the level of the next x.
    mix: [6, 9], the next registers over the basis.
    index: counts rows from 0 and names the row's noise.
    is_active: false in the tail that fills the last chunk.
  """

  # Any: float64 on the host, arrays on devices.
  level: Level
  next_level: Level
  mix: Any
  index: Any
  is_active: Any


# What is asked of x after a row, such as to take a known region from an image.
ReplaceKnown = Callable[
  [Float[Array, "b *rest"], Level], Float[Array, "b *rest"]
]


def row(level: Level, next_level: Level, **registers: np.ndarray) -> Row:
  """One row; registers that are not named stay as they are."""
  mix = np.eye(len(REGISTERS), len(X))
  for name, value in registers.items():
    mix[REGISTERS.index(name)] = value
  return Row(level, next_level, mix, np.int32(0), np.bool_(True))


def stack(rows: Sequence[Row]) -> Row:
  """All rows of a sampler as one, numbered.

  Raises:
    FloatingPointError: a number of theirs is not finite.
  """
  if not all(np.isfinite(each.mix).all() for each in rows):
    raise FloatingPointError("a sampler's coefficients are not finite")
  table = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
  return table._replace(index=np.arange(len(rows), dtype=np.int32))


def split_table(table: Row, length: int = CHUNK_ROWS) -> Iterator[Row]:
  """Cuts a table into pieces of `length` rows; masked ones fill the last."""
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
  """x_T ~ N(0, I); the samplers' own noise never meets this stream."""
  return normal(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), shape)


def init_registers(xt: Float[Array, "b *rest"]) -> Float[Array, "r b *rest"]:
  """The registers before the first row: x alone."""
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
    state: registers, of `begin` or of the chunk before; x is the first.
    keys: one per image; row i of it draws from fold_in(key, 1 + i).
    replace_known: what is done to x after every row, at the level reached.
  """

  def advance(state: Array, each: Row) -> Array:
    x0, eps = denoise(state[0], each.level)
    row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + each.index)
    noise = normal(row_keys, state.shape[2:], state.dtype)
    basis = jnp.concatenate([state, jnp.stack([x0, eps, noise])])
    state = jnp.tensordot(each.mix, basis, 1, precision="highest")
    return state.at[0].set(replace_known(state[0], each.next_level))

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


def sample(
  denoise: Denoiser,
  xt: Float[Array, "b *rest"],
  table: Row,
  keys: Key[Array, " b"],
  replace_known: ReplaceKnown = lambda x, level: x,
) -> Float[Array, "b *rest"]:
  """A whole table in one scan, from x_T to where it lands."""
  return run(denoise, init_registers(xt), table, keys, replace_known)[0]
