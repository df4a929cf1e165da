"""softmax(q k^T / sqrt(d)) v, by the fastest attention backend."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.operators.choice import is_by_head
from ldm_jax.nn.operators.head_attention import (
  has_even_chunks,
  head_attention,
)

# An accelerator's own attention: the result, or None where it does not support
# these arrays. `runtime/devices/attention_kernels.py` puts one in place of a
# backend's name.
AttentionKernel = Callable[[Array, Array, Array], Array | None]
AttentionBackend = (
  Literal["auto", "xla", "chunked", "splash", "cudnn"] | AttentionKernel
)

# From this many scores per head on, storing them costs more than the loop.
_MANY_SCORES = 1024 * 1024
_QUERIES, _KEYS = 1024, 256  # chunk lengths, measured best on two CPU cores


def dot_product_attention(
  q: Float[Array, "b l n d"],
  k: Float[Array, "b m n d"],
  v: Float[Array, "b m n d"],
  attention_backend: AttentionBackend = "auto",
  *,
  is_causal: bool = False,
) -> Float[Array, "b l n d"]:
  """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), n heads.

  Scores and softmax are float32, the result has q's format.

  Args:
    attention_backend: "xla" stores all l x m scores; "chunked" never does,
      forward or backward; "auto" takes "chunked" for long sequences, or on a
      CPU one head at a time. What a kernel does not support, causal attention
      included, is as "auto".
    is_causal: query i attends to keys 0 to i only.

  Raises:
    ValueError: the backend exists on accelerators only.
  """
  if callable(attention_backend):
    result = None if is_causal else attention_backend(q, k, v)
    if result is not None:
      return result
    attention_backend = "auto"
  if attention_backend in ("splash", "cudnn"):
    raise ValueError(
      f"attention_backend {attention_backend!r} needs an accelerator; "
      "runtime.devices.attention_kernels sets it"
    )
  lengths = q.shape[1], k.shape[1]
  if (
    attention_backend == "auto"
    and not is_causal
    and is_by_head(*lengths, q.dtype)
    and has_even_chunks(*lengths)
  ):
    return head_attention(q, k, v)
  is_long = q.shape[1] * k.shape[1] >= _MANY_SCORES
  if attention_backend == "chunked" or (
    attention_backend == "auto" and is_long
  ):
    return chunked_attention(q, k, v, is_causal=is_causal)
  dtype = q.dtype
  if dtype == jnp.float16 and jax.default_backend() == "cpu":
    # XLA:CPU has no product of float16 with float32 sums.
    q, k, v = (each.astype(jnp.float32) for each in (q, k, v))
  out = jax.nn.dot_product_attention(q, k, v, is_causal=is_causal)
  return out.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnames=("is_causal",))
def chunked_attention(
  q: Float[Array, "b l n d"],
  k: Float[Array, "b m n d"],
  v: Float[Array, "b m n d"],
  is_causal: bool = False,
) -> Float[Array, "b l n d"]:
  """Attention by an online softmax over chunks (Rabe and Staats 2021).

  Memory is linear in l and m. The backward pass recomputes each chunk's
  scores from the saved log-sum-exp (Dao et al. 2022, algorithm 4).
  """
  return _forward(q, k, v, is_causal)[0]


def _forward(q: Array, k: Array, v: Array, is_causal: bool):
  """The output and, for the backward pass, ln sum exp of scores."""
  queries, length = _cut(q, _QUERIES), q.shape[1]
  keys, values = _cut(k, _KEYS), _cut(v, _KEYS)
  last_keys = _last_visible(queries, k.shape[1], is_causal)

  def over_keys(row):
    """(output, ln sum exp) of one chunk of queries, over all keys."""
    query, last_key = row

    def body(carry, chunk):
      total, mass, max_score = carry
      key, value, position = chunk
      scores = _scores(query, key, last_key, position)
      max_now = jnp.maximum(max_score, scores.max(-1))
      weights = jnp.exp(scores - max_now[..., None])
      decay = jnp.exp(max_score - max_now)
      total = total * decay[..., None] + _mix(weights, value)
      return (total, mass * decay + weights.sum(-1), max_now), None

    b, rows, n, d = query.shape
    start = (
      jnp.zeros((b, n, rows, d), jnp.float32),
      jnp.zeros((b, n, rows), jnp.float32),
      jnp.full((b, n, rows), -jnp.inf, jnp.float32),
    )
    chunks = (keys, values, _positions(keys))
    (total, mass, max_score), _ = jax.lax.scan(body, start, chunks)
    out = (total / mass[..., None]).swapaxes(1, 2).astype(q.dtype)
    return out, max_score + jnp.log(mass)

  outs, log_masses = jax.lax.map(over_keys, (queries, last_keys))
  out = _join(outs, length)
  return out, (q, k, v, out, log_masses)


def _backward(is_causal: bool, saved, grad: Array):
  """dv = P^T do; dP = do v^T; dS = P (dP - sum(do o)); dq, dk from dS."""
  q, k, v, out, log_masses = saved
  scale = q.shape[-1] ** -0.5
  grad32 = grad.astype(jnp.float32)
  inner = _cut((grad32 * out.astype(jnp.float32)).sum(-1), _QUERIES)
  queries, keys = _cut(q, _QUERIES), _cut(k, _KEYS)
  last_keys = _last_visible(queries, k.shape[1], is_causal)
  by_query = (queries, _cut(grad32, _QUERIES), log_masses, inner, last_keys)

  def over_queries(dq_total: Array, chunk):
    """Adds one chunk of keys' part of dq; returns the chunk's (dk, dv)."""
    key, value, position = chunk

    def body(carry, row):
      query, row_grad, log_mass, row_inner, last_key = row
      dk, dv = carry
      scores = _scores(query, key, last_key, position)
      weights = jnp.exp(scores - log_mass[..., None])
      dv += jnp.einsum("bnqk,bqnd->bknd", weights, row_grad)
      dweights = jnp.einsum("bqnd,bknd->bnqk", row_grad, value)
      dscores = weights * (dweights - row_inner.swapaxes(1, 2)[..., None])
      dk += scale * jnp.einsum("bnqk,bqnd->bknd", dscores, query)
      dq = scale * jnp.einsum("bnqk,bknd->bqnd", dscores, key)
      return (dk, dv), dq

    zero = jnp.zeros(key.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(body, (zero, zero), by_query)
    return dq_total + dq, (dk, dv)

  chunks = (keys, _cut(v, _KEYS), _positions(keys))
  start = jnp.zeros(queries.shape, jnp.float32)
  dq, (dk, dv) = jax.lax.scan(over_queries, start, chunks)
  return (
    _join(dq, q.shape[1]).astype(q.dtype),
    _join(dk, k.shape[1]).astype(k.dtype),
    _join(dv, v.shape[1]).astype(v.dtype),
  )


chunked_attention.defvjp(_forward, _backward)


def _cut(x: Array, most: int) -> Array:
  """[b l ...] -> [chunks b l' ...], even chunks of at most `most`, padded."""
  count = math.ceil(x.shape[1] / most)
  each = math.ceil(x.shape[1] / count)
  padding = [(0, 0), (0, count * each - x.shape[1])]
  x = jnp.pad(x, padding + [(0, 0)] * (x.ndim - 2))
  x = x.reshape(x.shape[0], count, each, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _join(x: Array, length: int) -> Array:
  """Undoes `_cut`."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _positions(chunks: Array) -> Array:
  """The position in the whole sequence of each row of `_cut`, [chunks l']."""
  count, _, each = chunks.shape[:3]
  return jnp.arange(count * each).reshape(count, each)


def _last_visible(queries: Array, keys: int, is_causal: bool) -> Array:
  """The last key each query attends to, [chunks l']; padding comes after it."""
  positions = _positions(queries)
  last = jnp.full_like(positions, keys - 1)
  return jnp.minimum(positions, last) if is_causal else last


def _scores(
  query: Array, key: Array, last_key: Array, position: Array
) -> Array:
  """q k^T / sqrt(d), -inf for keys after the last visible one."""
  scores = jnp.einsum(
    "bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32
  )
  scores = scores * query.shape[-1] ** -0.5
  return jnp.where(position <= last_key[:, None], scores, -jnp.inf)


def _mix(weights: Array, value: Array) -> Array:
  return jnp.einsum(
    "bnqk,bknd->bnqd",
    weights.astype(value.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
