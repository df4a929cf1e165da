"""Exact search for the nearest of many embeddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 65_536  # rows of a database that are compared at a time
QUERIES = 1024  # and with how many questions


def nearest(
  queries: Float[np.ndarray, "q d"],
  rows: Float[np.ndarray, "n e"],
  k: int,
  without: Int[np.ndarray, " q"] | None = None,
) -> Int[np.ndarray, "q k"]:
  """Which k rows have the largest inner product with each query, best first.

  Nothing is approximated. Rows of equal product come in their own order.

  Args:
    rows: a database, perhaps mapped from a file; of length 1 for cosines.
    without: for each query a row that does not count, such as itself, or -1.

  Raises:
    ValueError: there are not k rows to be found, or widths differ.
  """
  left = len(rows) - (without is not None)
  if not 1 <= k <= left:
    raise ValueError(f"k={k} neighbours of {left} rows; 1 to {left} can be had")
  if queries.shape[1] != rows.shape[1]:
    raise ValueError(
      f"queries of width {queries.shape[1]}, rows of width {rows.shape[1]}; "
      "they must come from one encoder"
    )
  if without is None:
    without = np.full(len(queries), -1)
  found = []
  for i in range(0, len(queries), QUERIES):
    part = slice(i, i + QUERIES)
    found.append(_search(queries[part], rows, k, without[part]))
  return np.concatenate(found)


def _search(queries, rows, k, without) -> Int[np.ndarray, "q k"]:
  """The best of each block, merged with the best so far."""
  best = (
    jnp.full((len(queries), k), -jnp.inf),
    jnp.zeros((len(queries), k), jnp.int32),
  )
  asked, bare = jnp.asarray(queries, jnp.float32), jnp.asarray(without)
  for start in range(0, len(rows), BLOCK):
    block = jnp.asarray(np.asarray(rows[start : start + BLOCK], np.float32))
    best = _merge(best, asked, block, start, bare, k=k)
  return np.asarray(best[1])


@functools.partial(jax.jit, static_argnames="k")
def _merge(
  best: tuple[Array, Array],
  queries: Float[Array, "q d"],
  block: Float[Array, "n d"],
  start: Int[Array, ""],
  without: Int[Array, " q"],
  *,
  k: int,
) -> tuple[Array, Array]:
  products = jnp.matmul(queries, block.T, precision="highest")
  places = start + jnp.arange(len(block), dtype=jnp.int32)
  products = jnp.where(places == without[:, None], -jnp.inf, products)
  values, chosen = jax.lax.top_k(products, min(k, len(block)))
  values = jnp.concatenate([best[0], values], axis=1)
  indices = jnp.concatenate([best[1], places[chosen]], axis=1)
  values, chosen = jax.lax.top_k(values, k)
  return values, jnp.take_along_axis(indices, chosen, axis=1)
