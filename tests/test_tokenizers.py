"""Tokenizers: ids equal transformers', trained or read from a folder."""

import concurrent.futures
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, CLIPTokenizer

from ldm_jax.data.text.tokenizers import TokenizerConfig, load

CAPTIONS = [
  "a large red circle, left of a small blue square",
  "a small green triangle on grey",
  "A Large Blue Circle.",
]


@pytest.fixture
def clip(tmp_path):
  """The files of CLIP: every byte, inside a word and at its end, two merges."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  ends = [letter + "</w>" for letter in letters]
  special = ["<|startoftext|>", "<|endoftext|>"]
  vocabulary = [*letters, *ends, "ca", "cat</w>", *special]
  folder = tmp_path / "clip"
  folder.mkdir()
  ids = {token: i for i, token in enumerate(vocabulary)}
  (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
  merges = "#version: 0.2\nc a\nca t</w>\n"
  (folder / "merges.txt").write_text(merges, encoding="utf-8")
  return folder


@pytest.fixture
def bert(tmp_path):
  folder = tmp_path / "bert"
  folder.mkdir()
  tokenizer = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "cat",
    "##s",
  ]
  (folder / "vocab.txt").write_text("\n".join(tokenizer), encoding="utf-8")
  return folder


def trained(kind, **fields):
  fields = {"vocabulary": 400, "length": 16} | fields
  return TokenizerConfig(kind=kind, **fields).build(CAPTIONS)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_trained_ids_begin_end_and_pad(kind):
  tokenizer = trained(kind)
  ids = tokenizer.encode(["a red circle", ""])
  assert ids.dtype == np.int32 and ids.shape == (2, 16)
  row = ids[0].tolist()
  end = row.index(3)
  assert row[0] == 2 and not any(row[end + 1 :]) and min(row[1:end]) > 3
  np.testing.assert_array_equal(ids[1], [2, 3] + [0] * 14)
  np.testing.assert_array_equal(tokenizer.empty, ids[1])
  assert tokenizer.encode([]).shape == (0, 16)


def test_every_word_of_the_captions_has_one_id():
  tokenizer = trained("word", length=32)
  distinct = set(" ".join(CAPTIONS).lower().replace(",", " ,").split())
  distinct = (distinct - {"circle."}) | {"circle", "."}
  assert tokenizer.size == 4 + len(distinct)
  assert not (tokenizer.encode(CAPTIONS) == 1).any()
  np.testing.assert_array_equal(
    tokenizer.encode(["a zebra"])[0, :4],
    [2, tokenizer.encode(["a"])[0, 1], 1, 3],
  )


def test_byte_level_bpe_encodes_every_text():
  tokenizer = trained("bpe", length=64)
  text = "zebra 🦓 naïve ñ"
  assert tokenizer.decode(tokenizer.encode([text])[0]) == text
  assert tokenizer.size <= 400


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_decode_inverts_encode_up_to_case(kind):
  tokenizer = trained(kind, length=64)
  for caption, ids in zip(CAPTIONS, tokenizer.encode(CAPTIONS), strict=True):
    assert tokenizer.decode(ids) == caption.lower()
  assert tokenizer.decode(tokenizer.empty) == ""


@pytest.mark.parametrize(("kind", "length"), [("word", 5), ("bpe", 5)])
def test_long_texts_are_truncated_before_the_end_token(kind, length):
  tokenizer, whole = trained(kind, length=length), trained(kind, length=64)
  for text in CAPTIONS:
    used = int((whole.encode([text]) != 0).sum())
    row = tokenizer.encode([text])[0]
    assert row[0] == 2 and row[-1] == 3
    np.testing.assert_array_equal(
      row[:-1], whole.encode([text])[0, : length - 1]
    )
    assert tokenizer.cut([text]).tolist() == [used - length]
  assert tokenizer.cut(["", "a"]).tolist() == [0, 0]


def test_a_small_vocabulary_keeps_the_frequent_words():
  tokenizer = TokenizerConfig(vocabulary=6, length=8).build(
    ["b b b", "a a", "c"]
  )
  assert tokenizer.size == 6
  assert (tokenizer.encode(["a b c"])[0, 1:4] == [5, 4, 1]).all()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_training_does_not_depend_on_order(kind):
  captions = [f"thing {i} and {i * 7 % 50}" for i in range(50)]
  one, other = (
    TokenizerConfig(kind=kind, vocabulary=330).build(texts)
    for texts in (captions, captions[::-1])
  )
  assert one.backend.get_vocab() == other.backend.get_vocab()
  np.testing.assert_array_equal(one.encode(captions), other.encode(captions))


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_saved_tokenizer_loads_here_and_in_transformers(kind, tmp_path):
  tokenizer = trained(kind)
  tokenizer.encode(CAPTIONS)  # truncation and padding are not saved
  tokenizer.save(tmp_path / "saved")
  again = load(tmp_path / "saved", 16)
  np.testing.assert_array_equal(
    again.encode(CAPTIONS), tokenizer.encode(CAPTIONS)
  )
  assert again.size == tokenizer.size
  assert again.decode(again.encode(CAPTIONS)[1]) == CAPTIONS[1]
  theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
  assert (theirs.pad_token_id, theirs.unk_token_id) == (0, 1)
  assert (theirs.bos_token_id, theirs.eos_token_id) == (2, 3)
  long = "a large red circle " * 9
  rows = theirs([*CAPTIONS, long], padding="max_length", max_length=16,
                truncation=True).input_ids  # fmt: skip
  np.testing.assert_array_equal(rows, tokenizer.encode([*CAPTIONS, long]))
  assert len(theirs(long).input_ids) > 16


def test_clip_from_its_bare_files_and_saved(clip, tmp_path):
  tokenizer = load(clip, 8)
  cat, begin, end = 513, 514, 515
  exclamation = json.loads((clip / "vocab.json").read_text(encoding="utf-8"))[
    "!</w>"
  ]
  expected = [
    begin,
    cat,
    cat,
    exclamation,
    end,
    end,
    end,
    end,
  ]  # padded by its end
  np.testing.assert_array_equal(tokenizer.encode(["Cat cat!"])[0], expected)
  assert tokenizer.size == 516
  assert tokenizer.decode(np.array(expected)) == "cat cat !"
  assert tokenizer.cut(["cat " * 9]).tolist() == [3]
  tokenizer.save(tmp_path / "saved")
  again = load(tmp_path / "saved", 8)
  np.testing.assert_array_equal(again.encode(["Cat cat!"])[0], expected)


def test_a_saved_clip_tokenizer_has_its_pair_of_files(clip, tmp_path):
  """transformers 4's CLIPTokenizer reads vocab.json and merges.txt alone."""
  loaded = load(clip, 20)
  loaded.backend.add_tokens(["<new>"])
  loaded.backend.save_pretrained(tmp_path / "saved")
  names = {file.name for file in (tmp_path / "saved").iterdir()}
  assert {"vocab.json", "merges.txt", "added_tokens.json"} <= names
  bare = tmp_path / "bare"
  bare.mkdir()
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(tmp_path / "saved" / name, bare)
  assert (bare / "merges.txt").read_text().startswith("#version")
  again = load(bare, 20)
  texts = ["a red fox", "snow, in the woods!"]
  np.testing.assert_array_equal(again.encode(texts), loaded.encode(texts))


def test_clip_as_stable_diffusion_ships_it(clip):
  stored = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "pad_token": "!",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
  }
  path = clip / "tokenizer_config.json"
  path.write_text(json.dumps(stored), encoding="utf-8")
  row = TokenizerConfig(path=str(clip), length=6).build([]).encode(["cat"])[0]
  np.testing.assert_array_equal(row, [514, 513, 515, 0, 0, 0])  # "!" is id 0


def test_bert_from_its_bare_file_and_saved(bert, tmp_path):
  tokenizer = load(bert, 7)
  expected = [2, 5, 6, 7, 8, 1, 3]
  np.testing.assert_array_equal(
    tokenizer.encode(["A red cats dog"])[0], expected
  )
  np.testing.assert_array_equal(tokenizer.empty, [2, 3, 0, 0, 0, 0, 0])
  assert tokenizer.decode(tokenizer.encode(["a Red cats"])[0]) == "a red cats"
  tokenizer.save(tmp_path / "saved")
  again = load(tmp_path / "saved", 7)
  np.testing.assert_array_equal(again.encode(["A red cats dog"])[0], expected)


def test_a_cased_vocabulary_keeps_its_case(bert):
  with (bert / "vocab.txt").open("a", encoding="utf-8") as file:
    file.write("\nParis")
  np.testing.assert_array_equal(
    load(bert, 5).encode(["Paris Cat"])[0], [2, 9, 1, 3, 0]
  )


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (None, "no tokenizer folder.*hub are not looked up"),
    ({}, "holds no tokenizer; expected tokenizer.json"),
    ({"vocab.json": '{"a": 0}'}, "has vocab.json, but not merges.txt"),
    ({"tokenizer_config.json": '{"tokenizer_class": "CLIPTokenizer"}'},
     "no words, only its 2 special tokens"),
    ({"tokenizer_config.json": '{"tokenizer_class": "BertTokenizer"}'},
     "no words, only its 5 special tokens"),
    ({"tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer"}'},
     "no words, only its .* special tokens"),
    ({"vocab.txt": ""}, "no words"),
    ({"tokenizer.json": "{}"}, "no tokenizer loads from"),
    ({"tokenizer.json": "cut of"}, "its JSON is malformed"),
  ],
)  # fmt: skip
def test_a_folder_without_a_vocabulary_is_an_error_of_one_line(
  tmp_path, files, message
):
  folder = tmp_path / "x"
  if files is not None:
    folder.mkdir()
    for name, text in files.items():
      (folder / name).write_text(text, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as caught:
    load(folder, 8)
  assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_code_in_a_folder_is_not_run(bert, tmp_path):
  stored = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
  path = bert / "tokenizer_config.json"
  path.write_text(json.dumps(stored), encoding="utf-8")
  sentinel = tmp_path / "sentinel"
  code = f"open({str(sentinel)!r}, 'w')"
  (bert / "evil.py").write_text(code, encoding="utf-8")
  with pytest.raises(ValueError, match="no tokenizer loads from"):
    load(bert, 8)
  assert not sentinel.exists()


def test_impossible_training_is_refused():
  with pytest.raises(ValueError, match="no words to train"):
    TokenizerConfig().build(["", "  "])
  with pytest.raises(ValueError, match="needs 260"):
    TokenizerConfig(kind="bpe", vocabulary=259)
  with pytest.raises(ValueError, match="length 2"):
    TokenizerConfig(length=2)


def added(content, **fields):
  """A token as tokenizer_config.json of transformers 4 has it."""
  plain = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
  return plain | {"normalized": True, "content": content} | fields


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TYPED = {"__type": "AddedToken"}
CONFIGS = {
  "bare": {},
  "sd1": {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": added(BEGIN) | TYPED,
    "eos_token": added(END) | TYPED,
    "unk_token": added(END) | TYPED,
    "pad_token": END,
    "model_max_length": 77,
  },
  "sdxl": {
    "tokenizer_class": "CLIPTokenizer",
    "added_tokens_decoder": {
      "0": added("!", normalized=False, special=True),
      "514": added(BEGIN, special=True),
      "515": added(END, normalized=False, special=True),
    },
    "pad_token": "!",
    "clean_up_tokenization_spaces": True,
  },
  "added": {
    "tokenizer_class": "CLIPTokenizerFast",
    "pad_token": "<pad>",
    "additional_special_tokens": ["<toy>"],
  },
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_saved", [False, True])
def test_clip_folders_are_read_as_transformers_reads_them(clip, name, is_saved):
  """The whole pipeline is equal, hence every id."""
  if CONFIGS[name]:
    text = json.dumps(CONFIGS[name])
    (clip / "tokenizer_config.json").write_text(text, encoding="utf-8")
  theirs = CLIPTokenizer.from_pretrained(clip)
  if is_saved:
    theirs.save_pretrained(clip)
    theirs = CLIPTokenizer.from_pretrained(clip)
  ours = load(clip, 8).backend
  pipeline = lambda each: json.loads(each.backend_tokenizer.to_str())
  assert pipeline(ours) == pipeline(theirs)
  for key in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
    assert getattr(ours, key) == getattr(theirs, key)
  assert ours.added_tokens_encoder == theirs.added_tokens_encoder
  assert ours.all_special_tokens == theirs.all_special_tokens


def test_clip_and_bert_need_no_transformers(clip, bert, monkeypatch):
  monkeypatch.setitem(sys.modules, "transformers", None)
  assert load(clip, 8).size == 516 and load(bert, 8).size == 9
  assert trained("word").encode(["a red circle"]).shape == (1, 16)
  config = json.dumps({"tokenizer_class": "GPT2Tokenizer"})
  (clip / "tokenizer_config.json").write_text(config, encoding="utf-8")
  with pytest.raises(ValueError, match="pip install transformers"):
    load(clip, 8)


def test_threads_can_share_a_tokenizer(clip):
  tokenizer = load(clip, 12)
  texts = [f"cat {i}" for i in range(200)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    rows = list(pool.map(lambda text: tokenizer.encode([text])[0], texts))
  np.testing.assert_array_equal(np.stack(rows), tokenizer.encode(texts))


def test_loading_prints_nothing(tmp_path):
  trained("word").save(tmp_path / "saved")
  code = (
    "import sys; from ldm_jax.data.text.tokenizers import load; "
    "w = load(sys.argv[1], 16); print(*w.encode(['a large red circle'])[0]); "
    "assert 'jax' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path / "saved"],
    capture_output=True, text=True, check=True, timeout=60,
  )  # fmt: skip
  expected = trained("word").encode(["a large red circle"])[0]
  assert done.stdout.split() == [str(i) for i in expected]
  assert done.stderr == ""
