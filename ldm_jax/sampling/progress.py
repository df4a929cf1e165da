"""The progress of sampling: after every few steps, with x0 if asked.

A piece of any length is padded with inactive rows to the length that the
engine compiles, so that progress after every step costs no compilation.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.diffusion import samplers


class Progress(NamedTuple):
  """How the caller of `generate` follows it.

  Attributes:
    advance: called with the number of network calls just finished, and with
      the latents of x0, [b h w c], if `with_x0`, else with None.
    length: network calls between two calls of `advance`, at most
      samplers.CHUNK_ROWS.
  """

  advance: Callable[[int, Array | None], None]
  length: int = samplers.CHUNK_ROWS
  with_x0: bool = False


def pieces(program: samplers.Row, length: int) -> Iterator[samplers.Row]:
  """The table, `length` rows at a time, each padded to samplers.CHUNK_ROWS."""
  length = min(length, samplers.CHUNK_ROWS)
  for part in samplers.split_table(program, length):
    (padded,) = samplers.split_table(part)
    yield padded


def add_x0_register(
  state: Float[Array, "r b h w c"],
) -> Float[Array, "r2 b h w c"]:
  """The registers and one more, in which `keep_x0` leaves x0."""
  return jnp.concatenate([state, jnp.zeros_like(state[:1])])


def keep_x0(piece: samplers.Row) -> samplers.Row:
  """The piece for `add_x0_register`: each row also stores its x0.

  A row mixes the registers, x0, eps and noise linearly; see
  diffusion/samplers/sampler_table.py.
  """
  length, registers, basis = piece.mix.shape
  mix = np.zeros((length, registers + 1, basis + 1), piece.mix.dtype)
  mix[:, :-1, :registers] = piece.mix[:, :, :registers]
  mix[:, :-1, registers + 1 :] = piece.mix[:, :, registers:]
  mix[:, -1, registers + 1] = 1  # x0 stands first behind the registers
  return piece._replace(mix=mix)


def report(
  progress: Progress | None,
  waiting: list[tuple[Array, Array | None]],
  keep: int,
) -> None:
  """Reports all but the last `keep` of the finished pieces, in order.

  Args:
    waiting: of each piece the number of its active rows, and x0 or None.
  """
  while len(waiting) > keep:
    done, x0 = waiting.pop(0)
    progress.advance(int(done), x0)
