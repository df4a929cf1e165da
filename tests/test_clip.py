"""CLIP text encoders, and the conditioner over them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.nn.attention import dot_product_attention
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import SizeEmbedder, merge
from ldm_jax.nn.encoders.clip_text import ClipText

BEGIN, END, VOCABULARY = 50, 51, 60
ENCODER = ClipText(VOCABULARY, 16, 3, 2, length=8)
OTHER = ClipText(VOCABULARY, 12, 2, 3, 8, 20, "gelu", projection=10, end=END)


def random_params(module, *inputs):
  """Parameters of a module, all of them random."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  rng = np.random.default_rng(0)
  random = lambda path, leaf: jnp.asarray(
    rng.normal(path[-1].key == "scale", 0.4, leaf.shape), leaf.dtype
  )
  return jax.tree_util.tree_map_with_path(random, shapes)


def random_ids(*shape, seed=0):
  """Ids without a begin or end token."""
  return np.random.default_rng(seed).integers(1, BEGIN, shape, np.int32)


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=("skip", "is_normed")
)
def run(module, params, *inputs, **static):
  """The module's output, compiled once for equal modules."""
  return module.apply(params, *inputs, **static)


def exact_causal(q, k, v):
  """Query i over keys 0 to i, in float64 NumPy."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape)
  for i in range(q.shape[1]):
    scores = np.einsum("bnd,bmnd->bnm", q[:, i], k[:, : i + 1])
    weights = np.exp(scores / math.sqrt(q.shape[-1]))
    weights /= weights.sum(-1, keepdims=True)
    out[:, i] = np.einsum("bnm,bmnd->bnd", weights, v[:, : i + 1])
  return out


# One chunk; many, with padding after the last; more keys or more queries.
@pytest.mark.parametrize(
  "lengths", [(77, 77), (1100, 1100), (300, 600), (1030, 301)]
)
def test_causal_attention_is_exact_with_both_backends(lengths):
  rng = np.random.default_rng(sum(lengths))
  normal = lambda n: jnp.asarray(rng.normal(size=(1, n, 2, 4)), jnp.float32)
  q, k, v, cotangent = map(normal, (*lengths, lengths[1], lengths[0]))

  @functools.partial(jax.jit, static_argnums=0)
  def both(attention_backend):
    attention = lambda *x: dot_product_attention(
      *x, attention_backend, is_causal=True
    )
    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(cotangent)

  expected = both("xla")
  np.testing.assert_allclose(expected[0], exact_causal(q, k, v), atol=2e-5)
  for ours, theirs in zip(both("chunked"), expected, strict=True):
    scale = float(jnp.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale)


def test_a_token_changes_no_earlier_state_and_every_later_one():
  tokens = random_ids(1, 8)
  params = random_params(ENCODER, tokens)
  states = lambda tokens: run(ENCODER, params, tokens).context
  for i in (1, 4, 7):
    changed = tokens.copy()
    changed[:, i] = changed[:, i] % (BEGIN - 1) + 1
    change = np.abs(states(changed) - states(tokens)).max(-1)[0]
    assert not change[:i].any()
    assert change[i:].min() > 1e-3


def test_chunked_attention_gives_the_same_states_and_gradients():
  tokens = random_ids(2, 8)
  params = random_params(OTHER, tokens)

  @functools.partial(jax.jit, static_argnums=1)
  @functools.partial(jax.value_and_grad, has_aux=True)
  def both(params, attention_backend):
    out = run(
      dataclasses.replace(OTHER, attention_backend=attention_backend),
      params,
      tokens,
      skip=1,
    )
    return (out.context**3).sum() + (out.pooled**3).sum(), out

  (_, out), grads = both(params, "chunked")
  (_, expected_out), expected = both(params, "xla")
  np.testing.assert_allclose(out.context, expected_out.context, atol=2e-5)
  np.testing.assert_allclose(out.pooled, expected_out.pooled, atol=2e-5)
  # Gradients that round to 0, as that of k's bias, are compared on the scale of
  # the others.
  largest = max(
    float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)
  )
  for ours, theirs in zip(
    *map(jax.tree.leaves, (grads, expected)), strict=True
  ):
    scale = max(float(jnp.abs(theirs).max()), largest / 100)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale)


@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_skipping_blocks_is_having_fewer(skip, is_normed):
  tokens = random_ids(2, 8)
  params = random_params(ENCODER, tokens)
  fewer = dataclasses.replace(ENCODER, depth=ENCODER.depth - skip)
  full = run(ENCODER, params, tokens)
  ours = run(ENCODER, params, tokens, skip=skip, is_normed=is_normed)
  theirs = run(fewer, params, tokens, is_normed=is_normed)
  np.testing.assert_allclose(ours.context, theirs.context, atol=1e-6)
  np.testing.assert_allclose(ours.pooled, full.pooled, atol=1e-6)


def test_bfloat16_returns_float32_close_to_the_exact():
  tokens = random_ids(2, 8)
  params = random_params(OTHER, tokens)
  coarse = dataclasses.replace(OTHER, dtype="bfloat16")
  for is_normed in (True, False):
    exact = run(OTHER, params, tokens, is_normed=is_normed)
    found = run(coarse, params, tokens, is_normed=is_normed)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
      assert ours.dtype == jnp.float32
      error = float(jnp.abs(ours - theirs).max() / theirs.std())
      assert 0 < error < 0.1


# Ids above the end token were added to a trained vocabulary.
POOLED_AT = {
  "first of several ends": ([9, 4, 51, 7, 51, 51, 3, 51], 2, 2),
  "an end before padding by 0": ([9, 4, 2, 5, 51, 0, 0, 0], 4, 4),
  "a larger id": ([9, 55, 51, 4, 51, 51, 55, 51], 2, 1),
  "no end": ([9, 4, 2, 5, 31, 0, 31, 0], 0, 4),
}


@pytest.mark.parametrize("case", POOLED_AT)
def test_a_text_is_pooled_at_its_end_token(case):
  tokens, *positions = POOLED_AT[case]
  tokens = np.asarray([tokens], np.int32)
  params = random_params(OTHER, tokens)
  for end, position in zip((END, None), positions, strict=True):
    found = run(dataclasses.replace(OTHER, end=end), params, tokens)
    kernel = params["params"]["projection"]["kernel"]
    expected = found.context[:, position] @ kernel
    np.testing.assert_allclose(found.pooled, expected, atol=1e-5)


# As transformers' CLIPTextModel and CLIPTextModelWithProjection count them,
# built on torch's meta device.
H = {"width": 1024, "heads": 16, "activation": "gelu"}
BIG_G = {"width": 1280, "depth": 32, "heads": 20, "activation": "gelu"}


@pytest.mark.parametrize(
  "encoder, count",
  [
    (ClipText(), 123_060_480),
    (ClipText(depth=23, **H), 340_387_840),
    (ClipText(depth=24, **H), 352_984_064),
    (ClipText(projection=1280, **BIG_G), 694_659_840),
  ],
)
def test_published_text_encoders_have_their_exact_size(encoder, count):
  tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens)
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def embedder(**changes):
  """As SDXL's: two encoders, no last norm, the second one's vector."""
  return ClipEmbedder(
    (ENCODER, OTHER),
    skips=(1, 1),
    paddings=(END, 0),
    is_normed=False,
    is_pooled=True,
    begin=BEGIN,
    end=END,
    **changes,
  )


def prompts(count, chunks, seed=0):
  """Ids of `count` prompts of so many chunks, each with begin and end."""
  tokens = random_ids(count, 2, chunks, 8, seed=seed)
  tokens[..., 0], tokens[..., 6] = BEGIN, END
  tokens[:, 0, :, 7], tokens[:, 1, :, 7] = END, 0
  return tokens.reshape(count, 2, chunks * 8)


def test_contexts_are_concatenated_and_the_last_encoder_gives_the_vector():
  tokens, keep = prompts(2, 1), np.zeros(2, bool)
  params = random_params(embedder(), tokens, keep)
  found = run(embedder(), params, tokens, keep)
  parts = [
    run(encoder, {"params": params["params"][f"encoders_{i}"]}, tokens[:, i],
        skip=1, is_normed=False)
    for i, encoder in enumerate((ENCODER, OTHER))
  ]  # fmt: skip
  together = np.concatenate([part.context for part in parts], -1)
  np.testing.assert_allclose(found.context, together, atol=1e-5)
  np.testing.assert_allclose(found.vector, parts[1].pooled, atol=1e-5)
  assert found.concat is None
  unpooled = run(embedder().clone(is_pooled=False), params, tokens, keep)
  assert unpooled.vector is None


def test_chunks_are_encoded_alone_and_concatenated():
  tokens, keep = prompts(2, 3), np.zeros(2, bool)
  params = random_params(embedder(), tokens, keep)
  found = run(embedder(), params, tokens, keep)
  assert found.context.shape == (2, 24, 28)
  for chunk in range(3):
    part = slice(8 * chunk, 8 * chunk + 8)
    alone = run(embedder(), params, tokens[..., part], keep)
    np.testing.assert_allclose(found.context[:, part], alone.context, atol=1e-5)
    is_first = np.allclose(found.vector, alone.vector, atol=1e-5)
    assert is_first == (chunk == 0)


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_unconditional_input_is_the_empty_prompt_or_zeros(chunks):
  tokens, drop = prompts(2, chunks), np.array([True, False])
  params = random_params(embedder(), tokens, drop)
  kept = run(embedder(), params, tokens, np.zeros(2, bool))

  empty = [[BEGIN, END] + 6 * [END], [BEGIN, END] + 6 * [0]]
  ids = np.tile(np.asarray([empty, empty], np.int32), chunks)
  unconditional = run(embedder(), params, ids, np.zeros(2, bool))
  zeros = jax.tree.map(jnp.zeros_like, kept)
  for null, expected in {"empty": unconditional, "zeros": zeros}.items():
    found = run(embedder(null=null), params, tokens, drop)
    for name in ("context", "vector"):
      ours, theirs = getattr(found, name), getattr(expected, name)
      np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
      np.testing.assert_allclose(ours[1], getattr(kept, name)[1], atol=1e-5)
      assert np.abs(ours[0] - getattr(kept, name)[0]).max() > 0.1


def test_sizes_are_cosines_then_sines_of_each_number():
  sizes = np.array([[1024, 768, 0, 13, 1024, 1024], [512, 2048, 7, 0, 1, 6]])
  found = run(SizeEmbedder(), {}, sizes, np.array([True, False]))
  rates = 10_000.0 ** (-np.arange(128) / 128)
  for row, numbers in zip(np.asarray(found.vector), sizes, strict=True):
    parts = [f(n * rates) for n in numbers for f in (np.cos, np.sin)]
    np.testing.assert_allclose(row, np.concatenate(parts), atol=3e-4)


def test_prompt_and_sizes_give_the_vector_of_sdxl():
  tokens, keep = prompts(2, 1), np.zeros(2, bool)
  sizes = np.random.default_rng(0).uniform(0, 9, (2, 6))
  assert not random_params(SizeEmbedder(), sizes, keep)
  text = run(embedder(), random_params(embedder(), tokens, keep), tokens, keep)
  size = run(SizeEmbedder(), {}, sizes, keep)
  both = merge([text, size]).vector
  np.testing.assert_array_equal(both[:, :10], text.vector)
  np.testing.assert_array_equal(both[:, 10:], size.vector)
  assert both.shape == (2, 10 + 6 * 256)


TOKENS, KEEP = prompts(1, 1), np.zeros(1, bool)
BAD = {
  "width 768 does not divide into 7 heads": lambda: ClipText(heads=7),
  "9 tokens, but the text encoder has 8 positions": lambda: run(
    ENCODER, {}, random_ids(1, 9)
  ),
  "cannot skip 3 of 3 blocks; `skip` must be from 0 to 2": lambda: run(
    ENCODER, {}, random_ids(1, 8), skip=3
  ),
  "cannot skip -1 of 3 blocks": lambda: run(
    ENCODER, {}, random_ids(1, 8), skip=-1
  ),
  "2 encoders, 1 skips, 2 paddings": lambda: embedder().clone(skips=(0,)),
  "0 encoders": lambda: embedder().clone(encoders=(), skips=(), paddings=()),
  "encoders of lengths [8, 77]": lambda: embedder().clone(
    encoders=(ENCODER, ClipText())
  ),
  "tokens for 1 encoders, 8 each; give 2 rows of ids, padded": lambda: run(
    embedder(), {}, TOKENS[:, :1], KEEP
  ),
  "tokens for 2 encoders, 7 each": lambda: run(
    embedder(), {}, TOKENS[..., :7], KEEP
  ),
}


@pytest.mark.parametrize("message", BAD)
def test_errors_name_what_is_needed(message):
  with pytest.raises(ValueError) as error:
    BAD[message]()
  assert str(error.value).startswith(message)
  assert "\n" not in str(error.value)


def test_one_tokenizers_ids_get_every_encoders_padding():
  """SDXL's two tokenizers differ in padding alone (CLIP's is its end token)."""
  encoders = (ClipText(60, 8, 1, 2, 6), ClipText(60, 8, 1, 2, 6))
  embedder = ClipEmbedder(encoders, (0, 0), (51, 0), begin=50, end=51)
  ids = jnp.array([[50, 3, 4, 51, 51, 51], [50, 7, 51, 51, 51, 51]])
  found = embedder.repeat_per_encoder(ids)
  np.testing.assert_array_equal(found[:, 0], ids)
  expected = [[50, 3, 4, 51, 0, 0], [50, 7, 51, 0, 0, 0]]
  np.testing.assert_array_equal(found[:, 1], expected)
