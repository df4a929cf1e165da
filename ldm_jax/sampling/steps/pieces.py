"""A sampler's table in pieces, and progress reports after them.

A piece of any length is padded with inactive rows to the length that is
compiled, so that progress after every step costs no compilation.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array

from ldm_jax.diffusion import samplers
from ldm_jax.sampling.steps.denoising_steps import StepInputs


class Progress(NamedTuple):
  """Progress reports for the caller of `generate`.

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
  """The table, `length` rows at a time, each padded to CHUNK_ROWS."""
  length = min(length, samplers.CHUNK_ROWS)
  for part in samplers.split_table(program, length):
    (padded,) = samplers.split_table(part)
    yield padded


def scheduled_pieces(
  program: samplers.Row,
  length: int,
  schedule: Sequence[tuple[float, StepInputs]],
) -> Iterator[tuple[samplers.Row, StepInputs]]:
  """`pieces`, each with what its steps take.

  Args:
    schedule: (fraction of the rows at which it ends, inputs) in turn.
  """
  first, count = 0, len(program.index)
  for end, step in schedule:
    rows = slice(first, max(first, round(end * count)))
    first = rows.stop
    part = jax.tree.map(operator.itemgetter(rows), program)
    for piece in pieces(part, length):
      yield piece, step


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
