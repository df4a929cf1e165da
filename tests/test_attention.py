"""All attention backends agree, in values and gradients."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.nn import attention


def exact(q, k, v):
  """Attention in float64 NumPy."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  scores = np.einsum("blnd,bmnd->bnlm", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bnlm,bmnd->blnd", weights, v)


def random_qkv(length, keys, heads=2, width=8, dtype=jnp.float32, scale=1.0):
  rng = np.random.default_rng(length + keys)
  shapes = [(2, n, heads, width) for n in (length, keys, keys, length)]
  draw = lambda shape: scale * rng.standard_normal(shape)
  return [jax.device_put(draw(shape).astype(dtype)) for shape in shapes]


# Less than a chunk, exactly one, ragged, many chunks; cross-attention.
LENGTHS = [(5, 5), (64, 77), (1024, 256), (1025, 257), (2100, 600)]


attend = jax.jit(attention.dot_product_attention, static_argnums=3)


@pytest.mark.parametrize("attention_backend", ["xla", "chunked"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_is_exact(attention_backend, lengths):
  q, k, v, _ = random_qkv(*lengths, scale=2.0)
  found = attend(q, k, v, attention_backend)
  np.testing.assert_allclose(found, exact(q, k, v), atol=2e-5)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_gradients_agree(lengths):
  *qkv, cotangent = random_qkv(*lengths)

  @jax.jit
  def pulls(*qkv):
    """Of both backends."""
    return [
      jax.vjp(lambda *qkv, name=name: attend(*qkv, name), *qkv)[1](cotangent)
      for name in ("chunked", "xla")
    ]

  for ours, theirs in zip(*pulls(*qkv), strict=True):
    scale = float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(scale, 1))


def test_bfloat16_keeps_its_format_and_float32_softmax():
  q, k, v, _ = random_qkv(300, 600, dtype=jnp.bfloat16)
  found = attend(q, k, v, "chunked")
  assert found.dtype == jnp.bfloat16
  reference = exact(q, k, v)
  found = np.asarray(found, np.float32)
  np.testing.assert_allclose(found, reference, atol=8e-3)


def test_float16_is_computed_on_every_platform():
  q, k, v, _ = random_qkv(9, 7, dtype=jnp.float16)
  found = jax.jit(attention.dot_product_attention)(q, k, v)
  assert found.dtype == jnp.float16
  np.testing.assert_allclose(found, exact(q, k, v), atol=4e-3)


def test_large_scores_do_not_overflow():
  q, k, v, _ = random_qkv(40, 700, scale=100.0)
  found = attend(q, k, v, "chunked")
  np.testing.assert_allclose(found, exact(q, k, v), rtol=1e-3, atol=1e-2)


def test_chunked_attention_never_stores_all_scores():
  """No array of l x m elements in the program, forward or backward."""
  length = 4096
  q = jnp.zeros((1, length, 1, 8))

  def both(q):
    out, pull = jax.vjp(lambda q: attention.dot_product_attention(q, q, q), q)
    return out, pull(out)

  def largest(jaxpr):
    most = 0
    for eqn in jaxpr.eqns:
      for var in eqn.outvars:
        most = max(most, var.aval.size)
      for inner in jax.extend.core.jaxprs_in_params(eqn.params):
        most = max(most, largest(inner))
    return most

  assert largest(jax.make_jaxpr(both)(q).jaxpr) < length * length / 4
