"""Tokens learned by textual inversion, from files of every form."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import assembled
from single_files import SD1
from tokenizers import pre_tokenizers
from torch_files import tensor, write

from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.tokenizers import load
from ldm_jax.errors import NonFiniteWeights, WeightsError
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.textual_inversion import load_inversion
from ldm_jax.weights.safetensors_files import write_safetensors

LENGTH = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """CLIP's kind of tokenizer: every byte, inside words and at their ends."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
  vocabulary += ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
  folder = tmp_path_factory.mktemp("tokenizer")
  ids = {token: i for i, token in enumerate(vocabulary)}
  (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
  (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
  return folder


def with_tokenizers(folder, count=1, end=None):
  """A model with `count` text encoders, each with its own tokenizer."""
  each_tokenizer = [load(folder, LENGTH) for _ in range(count)]
  last = each_tokenizer[0].backend.eos_token_id
  encoders = tuple(
    ClipText(each_tokenizer[0].size, 16 + 8 * i, 2, 2, LENGTH, end=end)
    for i in range(count)
  )
  syntaxes = tuple(PromptSyntax(each, last) for each in each_tokenizer)
  loaded = assembled(SD1, (4, 64), encoders, tokenizer=ClipPrompts(syntaxes))
  embedder = ClipEmbedder(
    encoders,
    (0,) * count,
    (last,) * count,
    is_pooled=True,
    begin=last - 1,
    end=last,
  )
  model = dataclasses.replace(loaded.model, conditioners=(embedder,))
  return dataclasses.replace(loaded, model=model)


def rows(*shape):
  return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def learned(tmp_path, loaded, content, name="x.safetensors", **options):
  """The model with a file's token; .pt is torch's older layout."""
  path = tmp_path / name
  if name.endswith("safetensors"):
    write_safetensors(path, content)
  else:
    is_array = lambda x: isinstance(x, np.ndarray)
    layout = "legacy" if name.endswith(".pt") else "zip"
    content = jax.tree.map(lambda x: tensor(x) if is_array(x) else x, content)
    write(layout, path, content)
  return load_inversion(loaded, path, **options)


def table(loaded, i=0):
  encoders = loaded.params.conditioners["tokens"]["params"]
  return np.asarray(encoders[f"encoders_{i}"]["tokens"]["embedding"])


THREE = rows(3, 16)
NAMED = {
  "<cat-toy>": ("x.safetensors", {"<cat-toy>": THREE}),
  "<toy>": ("learned_embeds.bin", {"<toy>": THREE}),
  "my-style": (
    "other.pt",
    {
      "string_to_token": {"*": np.array(265)},
      "string_to_param": {"*": THREE},
      "name": "my-style",
      "step": 7,
    },
  ),
  "by_file": ("by_file.pt", {"string_to_param": {"*": THREE}, "name": "*"}),
  "easynegative": ("easynegative.safetensors", {"emb_params": THREE}),
  "Bare": ("Bare.pt", THREE),
}


@pytest.mark.parametrize("word", NAMED)
def test_a_token_becomes_one_token_per_vector(tmp_path, folder, word):
  name, content = NAMED[word]
  loaded = with_tokenizers(folder)
  before = loaded.tokenizer.encode([f"a {word} b"])
  found = learned(tmp_path, loaded, content, name)
  size = len(table(loaded))
  a, b = (loaded.tokenizer.syntaxes[0].ids(letter)[0] for letter in "ab")
  ids = found.tokenizer.syntaxes[0].ids(f"a {word.upper()} b, {word}")
  comma = loaded.tokenizer.syntaxes[0].ids(",")[0]
  new = [size, size + 1, size + 2]
  assert ids == [a, *new, b, comma, *new]
  np.testing.assert_array_equal(table(found)[size:], THREE)
  np.testing.assert_array_equal(table(found)[:size], table(loaded))
  (encoder,) = found.model.conditioners[0].encoders
  assert encoder.vocabulary == size + 3
  added = found.tokenizer.syntaxes[0].tokenizer.backend.added_tokens_encoder
  assert [added[f"{word}{end}"] for end in ("", "_1", "_2")] == new
  # The caller's model is unchanged.
  np.testing.assert_array_equal(
    loaded.tokenizer.encode([f"a {word} b"]), before
  )
  assert len(table(loaded)) == size


def test_all_vectors_of_a_word_are_in_one_chunk(tmp_path, folder):
  loaded = with_tokenizers(folder)
  found = learned(tmp_path, loaded, {"<toy>": THREE})
  size, most = len(table(loaded)), LENGTH - 2
  ids = found.tokenizer.encode(["cat " * (most - 1) + "<toy> cat"])
  first, second = ids[0, 0, :LENGTH], ids[0, 0, LENGTH:]
  (cat,) = loaded.tokenizer.syntaxes[0].ids("cat")
  assert (first == cat).sum() == most - 1 and not np.any(first >= size)
  assert second[1:5].tolist() == [size, size + 1, size + 2, cat]
  line = refused(
    lambda: learned(tmp_path, loaded, {"<big>": rows(most + 1, 16)})
  )
  assert f"{most + 1} vectors" in line and f"holds {most}" in line


def test_a_word_is_found_as_a_word_only(tmp_path, folder):
  loaded = with_tokenizers(folder)
  found = learned(tmp_path, loaded, {"zap": rows(2, 16)})
  ids = lambda model, text: model.tokenizer.syntaxes[0].ids(text)
  for text in ("zaps", "a zap_ b", "bizap", "a fox"):
    assert ids(found, text) == ids(loaded, text)
  size = len(table(loaded))
  assert ids(found, "zap,zap") == [
    *(size, size + 1), *ids(loaded, ","), *(size, size + 1),
  ]  # fmt: skip
  assert ids(found, "zap_1") == [size + 1]


def test_words_add_up_and_survive_saving(tmp_path, folder):
  loaded = with_tokenizers(folder)
  found = learned(tmp_path, loaded, {"<one>": rows(16)})
  found = learned(tmp_path, found, {"<two>": rows(2, 16)}, token="<2>")
  syntax = found.tokenizer.syntaxes[0]
  size = len(table(loaded))
  assert syntax.ids("<one> <2>") == [size, size + 1, size + 2]
  assert syntax.ids("<two>") == loaded.tokenizer.syntaxes[0].ids("<two>")
  syntax.tokenizer.save(tmp_path / "saved")
  again = PromptSyntax(load(tmp_path / "saved", LENGTH), syntax.padding)
  for text in ("<one> <2>", "a <2>x", "<2", "a cat"):
    assert again.ids(text) == syntax.ids(text)


def test_each_text_encoder_has_its_own_vectors(tmp_path, folder):
  loaded = with_tokenizers(folder, 2)
  ours = {"clip_l": rows(2, 16), "clip_g": rows(2, 24)}
  found = learned(tmp_path, loaded, ours, "thing.safetensors")
  size = len(table(loaded))
  for i, key in enumerate(ours):
    np.testing.assert_array_equal(table(found, i)[size:], ours[key])
  ids = found.tokenizer.encode(["a thing"])
  assert (ids[0, 0] == ids[0, 1]).all() and size + 1 in ids


def encode(loaded, ids):
  (embedder,) = loaded.model.conditioners
  params = loaded.params.conditioners["tokens"]
  run = jax.jit(embedder.apply)
  return run(params, jnp.asarray(ids), jnp.zeros(len(ids), bool))


@pytest.mark.parametrize("has_end", [False, True])
def test_a_learned_token_conditions_as_a_token_of_its_embedding(
  tmp_path, folder, has_end
):
  """Contexts and pooled vectors, also where the largest id is pooled."""
  end = load(folder, LENGTH).backend.eos_token_id if has_end else None
  loaded = with_tokenizers(folder, end=end)
  (cat,) = loaded.tokenizer.syntaxes[0].ids("cat")
  found = learned(tmp_path, loaded, {"<new>": table(loaded)[cat]})
  texts = ["a <new> b", "a fox"]
  old = loaded.tokenizer.encode(
    [text.replace("<new>", "cat") for text in texts]
  )
  new = found.tokenizer.encode(texts)
  assert (old[0] != new[0]).sum() == 1 and (old[1] == new[1]).all()
  pairs = zip(
    jax.tree.leaves(encode(found, new)),
    jax.tree.leaves(encode(loaded, old)),
    strict=True,
  )
  for ours, theirs in pairs:
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def refused(call):
  with pytest.raises(ValueError) as caught:
    call()
  assert "\n" not in str(caught.value)
  return str(caught.value)


def without_clip(loaded):
  model = dataclasses.replace(loaded.model, conditioners=())
  return dataclasses.replace(loaded, model=model)


def unread(loaded):
  return dataclasses.replace(loaded, tokenizer=None)


REFUSED = {
  "width": ({"<a>": rows(2, 768)}, {}, "its vectors have 768 features; this "
            "model's text encoders need 16"),
  "encoders": ({"clip_l": rows(2, 16), "clip_g": rows(2, 24)}, {},
             "its vectors have 16 and 24 features; this model's text encoders "
             "need 16"),
  "tokens": ({"<a>": rows(2, 16), "<b>": rows(2, 16)}, {},
            "it holds 2 entries (<a>, <b>); expected the vectors of one"),
  "nothing": ({}, {}, "it holds 0 entries (); expected the vectors of one"),
  "no floats": ({"<a>": np.ones((2, 16), np.int32)}, {}, "<a> is (2, 16)"),
  "no rows": ({"<a>": rows(0, 16)}, {}, "<a> is (0, 16); expected"),
  "known": ({"<a>": rows(1, 16)}, {"token": "Cat"},
            "the tokenizer has the token 'Cat' already; choose another one"),
  "a piece": ({"<a>": rows(1, 16)}, {"token": "ca"},
              "the tokenizer has the token 'ca' already"),
  "no word": ({"<a>": rows(1, 16)}, {"token": " "},
              "the tokenizer does not find ''"),
  "deaf": ({"<a>": rows(1, 16)}, {"change": without_clip},
           "the model has no CLIP text encoder"),
  "unread": ({"<a>": rows(1, 16)}, {"change": unread},
             "the model has no tokenizer to which a token could be added"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_vectors_that_do_not_fit_are_refused(tmp_path, folder, case):
  content, options, message = REFUSED[case]
  options = dict(options)
  loaded = options.pop("change", lambda x: x)(with_tokenizers(folder))
  error = refused(lambda: learned(tmp_path, loaded, content, **options))
  assert error.removeprefix(f"{tmp_path}/x.safetensors: ").startswith(message)


def test_a_token_is_learned_once_and_by_all_encoders(tmp_path, folder):
  loaded = with_tokenizers(folder)
  found = learned(tmp_path, loaded, {"<a>": rows(2, 16)})
  for token in ("<a>", "<a>_1", "<A>"):
    error = refused(
      lambda token=token: learned(
        tmp_path, found, {"<b>": rows(16)}, token=token
      )
    )
    assert error.startswith(f"the tokenizer has the token {token!r} already")
  third = lambda: learned(tmp_path, found, {"<b>": rows(16)}, token="<a>_2")
  assert refused(third).startswith("the tokenizer does not find '<a>_2'")
  uneven = {"clip_l": rows(2, 16), "clip_g": rows(3, 24)}
  error = refused(lambda: learned(tmp_path, with_tokenizers(folder, 2), uneven))
  line = "2 and 3 vectors for the text encoders; as many for each are needed"
  assert error.endswith(line)


@pytest.mark.parametrize("key", ["emb_params", "string_to_param.*", "clip_l"])
def test_embeddings_bundled_with_a_lora_become_tokens(tmp_path, folder, key):
  loaded, vectors = with_tokenizers(folder), rows(2, 16)
  path = tmp_path / "x.safetensors"
  norm = "lora_unet_mid_block_resnets_1_norm1.w_norm"
  size = loaded.params.unet["params"]["mid_block_1"]["norm1"]["scale"].shape
  file = {f"bundle_emb.my.toy.{key}": vectors, norm: rows(*size)}
  write_safetensors(path, file)
  found = merge_lora(loaded, path, scale=0.5)
  count = len(table(loaded))
  np.testing.assert_array_equal(table(found)[count:], vectors)
  ids = found.tokenizer.syntaxes[0].ids("my.toy")
  assert ids == [count, count + 1]
  write_safetensors(path, {"bundle_emb.toy": vectors})
  with pytest.raises(WeightsError, match=r"bundle_emb\.toy is no embedding"):
    merge_lora(loaded, path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMED)
def test_vectors_that_are_not_finite_are_refused(tmp_path, folder, name, value):
  file, content = NAMED[name]
  bad = THREE.copy()
  bad[1, 2] = value
  replaced = lambda x: bad if x is THREE else x
  content = jax.tree.map(replaced, content)
  with pytest.raises(NonFiniteWeights, match="has 1 values of 48 that are not"):
    learned(tmp_path, with_tokenizers(folder), content, file)
