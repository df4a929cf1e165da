"""Attention one head at a time, so that its scores stay in the cache."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import product

_SCORES = 2**21  # of one head that are held at once


def has_even_chunks(queries: int, keys: int) -> bool:
  """Whether chunks of equal length are few: a prime number has no others."""
  return _chunks(queries, keys) <= 4 * math.ceil(queries * keys / _SCORES)


@jax.jit
@jax.custom_vjp
def head_attention(
  q: Float[Array, "b l n d"],
  k: Float[Array, "b m n d"],
  v: Float[Array, "b m n d"],
) -> Float[Array, "b l n d"]:
  """softmax(q k^T / sqrt(d)) v by loops over heads and chunks of queries.

  The backward pass recomputes the scores from the saved log-sum-exp.
  """
  return _forward(q, k, v)[0]


def _forward(q: Array, k: Array, v: Array):
  chunks = _chunks(q.shape[1], k.shape[1])

  def over_queries(head: tuple[Array, Array, Array]):
    queries, keys, values = head

    def attend(rows: Array):
      scores = product(rows, keys, True)
      top = scores.max(-1, keepdims=True)
      weights = jnp.exp(scores - top)
      mass = weights.sum(-1, keepdims=True)
      return product(weights, values) / mass, top + jnp.log(mass)

    return _over_chunks(attend, chunks, queries)

  heads = (_heads(q * q.shape[-1] ** -0.5), _heads(k), _heads(v))
  out, log_mass = lax.map(over_queries, heads)
  return _unheads(out, q.shape[0]), (q, k, v, out, log_mass)


@jax.jit
def _backward(saved, grad: Array):
  """dv = P^T do; dP = do v^T; dS = P (dP - sum(do o)); dq, dk from dS.

  dk and dv are summed as their transposes, q^T dS and do^T P: XLA:CPU takes
  several times as long for the transpose of the scores.
  """
  q, k, v, out, log_mass = saved
  scale = q.shape[-1] ** -0.5
  chunks = _chunks(q.shape[1], k.shape[1])
  grads = _heads(grad)
  inner = (grads * out).sum(-1, keepdims=True)

  def over_queries(head):
    """dq, and the transposes of dk and dv, of one head."""
    queries, keys, values, *rest = head
    turned_keys, turned_values = keys.T, values.T

    def attend(carry, rows):
      query, row_grad, row_log_mass, row_inner = rows
      dk, dv = carry
      weights = jnp.exp(query @ turned_keys - row_log_mass)
      dscores = weights * (row_grad @ turned_values - row_inner)
      dk, dv = dk + query.T @ dscores, dv + row_grad.T @ weights
      return (dk, dv), dscores @ keys

    start = jnp.zeros_like(turned_keys), jnp.zeros_like(turned_values)
    rows = [_split(x, chunks) for x in (queries, *rest)]
    (dk, dv), dq = lax.scan(attend, start, tuple(rows))
    return dq.reshape(queries.shape) * scale, dk, dv

  heads = (_heads(q * scale), _heads(k), _heads(v), grads, log_mass, inner)
  dq, dk, dv = lax.map(over_queries, heads)
  grads = dq, dk.swapaxes(1, 2), dv.swapaxes(1, 2)
  return tuple(_unheads(x, q.shape[0]) for x in grads)


head_attention.__wrapped__.defvjp(_forward, _backward)


def _over_chunks(function, chunks: int, rows: Array):
  """`function` of chunks of the rows, one after the other."""
  if chunks == 1:
    return function(rows)
  results = lax.map(function, _split(rows, chunks))
  return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), results)


def _chunks(queries: int, keys: int) -> int:
  """The smallest divisor of `queries` that bounds a chunk's scores."""
  chunks = 1
  while queries % chunks or queries // chunks * keys > _SCORES:
    if chunks == queries:
      break
    chunks += 1
  return chunks


def _split(rows: Array, chunks: int) -> Array:
  return rows.reshape(chunks, -1, rows.shape[-1])


def _heads(x: Array) -> Array:
  """[b l n d] -> [b*n l d]."""
  b, length, n, d = x.shape
  return x.swapaxes(1, 2).reshape(b * n, length, d)


def _unheads(x: Array, b: int) -> Array:
  """Undoes `_heads`."""
  _, length, d = x.shape
  return x.reshape(b, -1, length, d).swapaxes(1, 2)
