"""Prompt weighting follows AUTOMATIC1111's syntax."""

import clip_tokenizer
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.prompt_weighting import parse_prompt_weights
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText


def stretches(text):
  """(text, weight) of every stretch of one weight."""
  found = parse_prompt_weights(text)
  assert len(found.text) == len(found.weights)
  pieces = []
  for letter, weight in zip(found.text, found.weights, strict=True):
    if pieces and pieces[-1][1] == weight:
      pieces[-1][0] += letter
    else:
      pieces.append([letter, weight])
  return [tuple(piece) for piece in pieces]


@pytest.mark.parametrize(
  "text, expected",
  [
    ("a cat", [("a cat", 1.0)]),
    ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
    ("a ((cat))", [("a ", 1.0), ("cat", 1.21)]),
    ("a [cat]", [("a ", 1.0), ("cat", 0.909091)]),
    ("a (cat:1.3) here", [("a ", 1.0), ("cat", 1.3), (" here", 1.0)]),
    ("(a (red:1.5) cat:0.5)", [("a ", 0.5), ("red", 0.75), (" cat", 0.5)]),
    (r"a \(cat\)", [("a (cat)", 1.0)]),
    ("a (cat", [("a (cat", 1.0)]),
    ("a cat)", [("a cat)", 1.0)]),
    ("at 12:30 (noon)", [("at 12:30 ", 1.0), ("noon", 1.1)]),
    ("(cat:-1)", [("cat", -1.0)]),
    ("", []),
    ("()", []),
  ],
)
def test_weights_are_read(text, expected):
  assert stretches(text) == expected


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  clip_tokenizer.tokenizer(folder).save_pretrained(folder)
  return tokenizers.load(folder, 12)


def prompts_of(tokenizer):
  padding = tokenizer.backend.pad_token_id
  return ClipPrompts((PromptSyntax(tokenizer, padding),))


def test_every_token_has_the_weight_of_its_word(tokenizer):
  prompts = ClipPrompts(
    (PromptSyntax(tokenizer, tokenizer.backend.pad_token_id),)
  )
  weighted = [
    parse_prompt_weights("a (red:1.5) fox"),
    parse_prompt_weights("a cat"),
  ]
  ids = prompts.encode([each.text for each in weighted])
  weights = prompts.token_weights(weighted)
  assert weights.shape == ids.shape
  heavy = prompts.syntaxes[0].ids(" red")
  marked = ids[0, 0][weights[0, 0] == 1.5].tolist()
  assert marked == heavy and np.all(weights[1] == 1)


def test_long_prompts_keep_their_weights_over_chunks(tokenizer):
  prompts = ClipPrompts(
    (PromptSyntax(tokenizer, tokenizer.backend.pad_token_id),)
  )
  weighted = [parse_prompt_weights("a cat " * 9 + "(fox:2)")]
  ids, weights = (
    prompts.encode([weighted[0].text]),
    prompts.token_weights(weighted),
  )
  assert weights.shape == ids.shape and ids.shape[2] > 12
  heavy = prompts.syntaxes[0].ids(" fox")
  assert ids[weights == 2].tolist() == heavy
  empty = prompts.empty_like(ids)
  assert empty.shape == ids.shape
  np.testing.assert_array_equal(empty[0, 0, :12], prompts.encode([""])[0, 0])


@pytest.mark.parametrize(
  "text",
  ["wow!! (cat:1.5) dog", "(cat:1.5) dog", "a!! b!! (cat:1.5)"],
)
def test_every_text_encoder_has_weights_of_its_own(tokenizer, tmp_path, text):
  """A tokenizer whose padding is "!" splits "wow!!" in another way."""
  clip_tokenizer.tokenizer(tmp_path, "!").save_pretrained(tmp_path)
  other = tokenizers.load(tmp_path, 12)
  both = ClipPrompts(
    tuple(
      PromptSyntax(each, each.backend.pad_token_id)
      for each in (tokenizer, other)
    )
  )
  weighted = parse_prompt_weights(text)
  ids, weights = both.encode([weighted.text]), both.token_weights([weighted])
  assert weights.shape == ids.shape
  for syntax, row, own in zip(both.syntaxes, ids[0], weights[0], strict=True):
    assert row[own == 1.5].tolist() == syntax.ids("cat")
    assert set(own[row == syntax.padding]) == {1.0}


def test_weights_are_of_the_features_of_their_encoder():
  encoders = ClipText(40, 2, 1, 1, 4), ClipText(40, 3, 1, 1, 4)
  embedder = ClipEmbedder(encoders, (0, 0), (1, 0))
  weights = np.float32([[[1, 2, 1, 1], [1, 1, 3, 1]]])
  found = embedder.feature_weights(jnp.asarray(weights))
  np.testing.assert_array_equal(found[0, :, :2], weights[0, [0, 0]].T)
  np.testing.assert_array_equal(found[0, :, 2:], weights[0, [1, 1, 1]].T)


def test_a_break_begins_a_chunk(tokenizer):
  prompts = prompts_of(tokenizer)
  syntax = prompts.syntaxes[0]
  weighted = parse_prompt_weights("a (cat BREAK red:1.5) fox BREAK")
  assert weighted.text.split() == ["a", "cat", "red", "fox"]
  ids = prompts.encode([weighted])
  parts = [syntax.chunk(syntax.ids(text)) for text in ("a cat", "red fox")]
  np.testing.assert_array_equal(ids[0, 0], np.concatenate(parts))
  weights = prompts.token_weights([weighted])
  heavy = syntax.ids("cat") + syntax.ids("red")
  assert ids[weights == 1.5].tolist() == heavy
  counts = [
    prompts.count_chunks(parse_prompt_weights(text))
    for text in ("a", "a BREAK", "BREAK a", "a BREAK BREAK b", "BREAKs")
  ]
  assert counts == [1, 1, 2, 3, 1]


def test_tokenizers_of_trained_text_encoders_have_weights_too(tokenizer):
  weighted = [parse_prompt_weights("a (red:1.5) fox")]
  ids, weights = (
    tokenizer.encode([weighted[0].text]),
    tokenizer.token_weights(weighted),
  )
  assert weights.shape == ids.shape and (weights == 1.5).any()
  np.testing.assert_array_equal(
    tokenizer.empty_like(ids), tokenizer.encode([""])
  )
