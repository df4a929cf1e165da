"""Exact search for the nearest of many embeddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 65_536  # rows of the database that are compared at a time
QUERIES = 1024  # queries that are compared at a time


def nearest(
  queries: Float[np.ndarray, "q d"],
  rows: Float[np.ndarray, "n e"],
  k: int,
  exclude: Int[np.ndarray, " q"] | None = None,
) -> Int[np.ndarray, "q k"]:
  """Indices of the k rows of largest inner product per query, best first.

  The search is exact. Rows of equal product are ordered by their index.

  Args:
    rows: a database, which may be memory-mapped; rows of unit length give
      cosine similarity.
    exclude: for each query the index of a row that is left out, such as
      the query itself; -1 for none.

  Raises:
    ValueError: there are fewer than k rows, or widths differ.
  """
  left = len(rows) - (exclude is not None)
  if not 1 <= k <= left:
    raise ValueError(f"k={k} neighbours of {left} rows; k must be 1 to {left}")
  if queries.shape[1] != rows.shape[1]:
    raise ValueError(
      f"queries of width {queries.shape[1]}, rows of width {rows.shape[1]}; "
      "they must come from one encoder"
    )
  if exclude is None:
    exclude = np.full(len(queries), -1)
  found = []
  for i in range(0, len(queries), QUERIES):
    part = slice(i, i + QUERIES)
    found.append(_search(queries[part], rows, k, exclude[part]))
  return np.concatenate(found)


def _search(queries, rows, k, exclude) -> Int[np.ndarray, "q k"]:
  """The best rows of each block, merged with the best so far."""
  best = (
    jnp.full((len(queries), k), -jnp.inf),
    jnp.zeros((len(queries), k), jnp.int32),
  )
  queries, exclude = jnp.asarray(queries, jnp.float32), jnp.asarray(exclude)
  for start in range(0, len(rows), BLOCK):
    block = jnp.asarray(np.asarray(rows[start : start + BLOCK], np.float32))
    best = _merge(best, queries, block, start, exclude, k=k)
  return np.asarray(best[1])


@functools.partial(jax.jit, static_argnames="k")
def _merge(
  best: tuple[Array, Array],
  queries: Float[Array, "q d"],
  block: Float[Array, "n d"],
  start: Int[Array, ""],
  exclude: Int[Array, " q"],
  *,
  k: int,
) -> tuple[Array, Array]:
  products = jnp.matmul(queries, block.T, precision="highest")
  indices = start + jnp.arange(len(block), dtype=jnp.int32)
  products = jnp.where(indices == exclude[:, None], -jnp.inf, products)
  values, chosen = jax.lax.top_k(products, min(k, len(block)))
  values = jnp.concatenate([best[0], values], axis=1)
  indices = jnp.concatenate([best[1], indices[chosen]], axis=1)
  values, chosen = jax.lax.top_k(values, k)
  return values, jnp.take_along_axis(indices, chosen, axis=1)
