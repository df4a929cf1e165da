"""Text to int32 ids, by a transformers tokenizer or one trained here."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, Integer

from ldm_jax.data.text.prompt_weighting import WeightedPrompt

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")  # ids 0 to 3 of a trained one
PAIR = {"vocab.json", "merges.txt"}  # of CLIP and GPT-2: one needs the other
BYTES = 256  # every byte is a token of byte-level BPE


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Which `Tokenizer` to build.

  Attributes:
    path: a local folder with a transformers tokenizer; "" trains on captions.
    kind: what is trained, whole words or byte-level BPE; both in lower case.
    vocabulary: ids of a trained tokenizer at most, the 4 special ones included.
    length: ids per text, begin and end included; longer texts are cut.
  """

  path: str = ""
  kind: Literal["word", "bpe"] = "word"
  vocabulary: int = 1000
  length: int = 32

  def __post_init__(self):
    least = len(SPECIALS) + (BYTES if self.kind == "bpe" else 1)
    if not self.path and self.vocabulary < least:
      raise ValueError(
        f"vocabulary {self.vocabulary} is too small for kind {self.kind!r}; "
        f"it needs {least} at least"
      )
    if self.length < 3:
      raise ValueError(
        f"length {self.length} leaves no space between begin and end; "
        "it needs 3 at least"
      )

  def build(self, captions: Iterable[str]) -> "Tokenizer":
    """The tokenizer in `path`, or one trained on the captions."""
    if self.path:
      return load(self.path, self.length)
    return Tokenizer(_train(self, captions), self.length)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A transformers tokenizer with a fixed length; safe to share by threads.

  Attributes:
    backend: a transformers tokenizer that stands on the tokenizers library.
    length: ids per text.
  """

  backend: Any
  length: int

  @functools.cached_property
  def size(self) -> int:
    """One more than the largest id: rows of an embedding table."""
    return max(self.backend.get_vocab().values()) + 1

  @functools.cached_property
  def empty(self) -> Int32[np.ndarray, " l"]:
    """The ids of "": the null condition of classifier-free guidance."""
    return self.encode([""])[0]

  def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "b l"]:
    """Ids of each text, cut or padded on the right to `length`."""
    ids = [row.ids for row in self.fixed.encode_batch(list(texts))]
    return np.array(ids, np.int32).reshape(len(texts), self.length)

  def token_weights(
    self, texts: Sequence[WeightedPrompt]
  ) -> Float32[np.ndarray, "b l"]:
    """The weight of each id of `encode`: of the first letter it stands for."""
    rows = self.fixed.encode_batch([text.text for text in texts])
    weights = [
      [
        text.weights[begin] if end > begin else 1.0
        for begin, end in row.offsets
      ]
      for text, row in zip(texts, rows, strict=True)
    ]
    return np.asarray(weights, np.float32)

  def empty_like(
    self, like: Int32[np.ndarray, "b l"]
  ) -> Int32[np.ndarray, "b l"]:
    """Ids of the empty text, as often."""
    return np.broadcast_to(self.encode([""]), like.shape)

  def cut(self, texts: Sequence[str]) -> Int32[np.ndarray, " b"]:
    """How many tokens of each text `encode` leaves out."""
    rows = self.fixed.encode_batch(list(texts))
    return np.array([_left_out(row) for row in rows], np.int32)

  def unknown(self, text: str) -> list[str]:
    """The parts of a text that no token stands for."""
    row = self.fixed.encode(text)
    number = self.backend.unk_token_id
    lost = [
      text[begin:end]
      for token, (begin, end) in zip(row.ids, row.offsets, strict=True)
      if token == number and end > begin
    ]
    return list(dict.fromkeys(lost))

  def decode(self, ids: Integer[np.ndarray, " l"]) -> str:
    """The text, without padding, begin and end."""
    ids = [int(i) for i in ids]
    return self.backend.decode(ids, skip_special_tokens=True).strip()

  def save(self, folder: str | os.PathLike[str]) -> None:
    """For `load`, and for transformers.AutoTokenizer.from_pretrained."""
    self.backend.save_pretrained(os.fspath(folder))

  @functools.cached_property
  def fixed(self) -> Any:
    """A copy, of the tokenizers library, that always cuts and pads.

    The original is set anew at each call of transformers, which two threads
    must not do at once, and is saved with the settings it has.
    """
    import tokenizers

    backend = self.backend.backend_tokenizer
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.enable_truncation(self.length)
    pad = self.backend.pad_token or self.backend.eos_token
    number = self.backend.convert_tokens_to_ids(pad)
    copy.enable_padding(length=self.length, pad_id=number, pad_token=pad)
    return copy


def load(folder: str | os.PathLike[str], length: int) -> Tokenizer:
  """A saved tokenizer, or the vocabulary files of BERT, CLIP, GPT-2 or T5.

  Nothing is downloaded and no code of the folder is run. Raises ValueError if
  the folder is missing, or has no vocabulary: transformers would make up one
  of two ids.
  """
  path = pathlib.Path(folder).expanduser()
  if not path.is_dir():
    raise ValueError(
      f"no tokenizer folder {str(folder)!r}; needed is a local folder such as "
      "runs/x/tokenizer; names of the Hugging Face hub are not looked up"
    )
  opener = _opener(path)
  try:
    tokenizer = opener(str(path), local_files_only=True)
  except Exception as error:  # transformers and tokenizers raise many types
    detail = " ".join(f"{error}".split())[:200]
    raise ValueError(f"no tokenizer loads from {path}: {detail}") from error
  _check(tokenizer, path)
  return Tokenizer(tokenizer, length)


def _opener(path: pathlib.Path) -> Callable[..., Any]:
  """The class of a folder; AutoTokenizer does not know bare vocabularies."""
  names = set(os.listdir(path))
  with _no_notice():
    import transformers
  if "tokenizer.json" not in names and len(names & PAIR) == 1:
    (lone,) = names & PAIR
    raise ValueError(f"{path} has {lone}, but not {min(PAIR - {lone})}")
  if names & {"tokenizer.json", "tokenizer_config.json"}:
    load = transformers.AutoTokenizer.from_pretrained
    return functools.partial(load, trust_remote_code=False)
  if names >= PAIR:
    words = (path / "vocab.json").read_text(encoding="utf-8")
    is_clip = "<|startoftext|>" in json.loads(words)
    name = "CLIPTokenizer" if is_clip else "GPT2Tokenizer"
    return getattr(transformers, name).from_pretrained
  if "vocab.txt" in names:
    words = (path / "vocab.txt").read_text(encoding="utf-8").split()
    lower = all(w.islower() or w[0] == "[" for w in words if w.isalpha())
    load = transformers.BertTokenizer.from_pretrained
    return functools.partial(load, do_lower_case=lower)
  if "spiece.model" in names:
    return transformers.T5Tokenizer.from_pretrained
  raise ValueError(
    f"{path} holds no tokenizer; needed is tokenizer.json, vocab.json with "
    f"merges.txt, vocab.txt or spiece.model; it has {sorted(names)[:6]}"
  )


def _check(tokenizer: Any, path: pathlib.Path) -> None:
  """Refuse what transformers makes of missing files, and slow tokenizers."""
  words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
  if not words - {"▁"}:
    raise ValueError(
      f"the tokenizer in {path} has no words, only its {len(tokenizer)} "
      "special tokens; its vocabulary files are missing or empty"
    )
  if getattr(tokenizer, "backend_tokenizer", None) is None:
    raise ValueError(
      f"the tokenizer in {path} is a {type(tokenizer).__name__}, which has no "
      "fast form; needed is one with a tokenizer.json"
    )
  if (tokenizer.pad_token or tokenizer.eos_token) is None:
    raise ValueError(f"the tokenizer in {path} has no pad and no end token")


def _train(config: TokenizerConfig, captions: Iterable[str]) -> Any:
  """[BOS] text [EOS] over words or bytes; equal captions give equal ids."""
  import tokenizers

  with _no_notice():
    import transformers
  make = _word_level if config.kind == "word" else _byte_level
  tokenizer, trainer = make(config.vocabulary)
  tokenizer.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
  )
  tokenizer.train_from_iterator(captions, trainer)
  if config.kind == "word" and tokenizer.get_vocab_size() == len(SPECIALS):
    raise ValueError(
      "no words to train a tokenizer on: all captions are empty; "
      "use a source with captions, or name a tokenizer's folder as path"
    )
  pad, unknown, begin, end = SPECIALS
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{begin} $A {end}", special_tokens=[(begin, 2), (end, 3)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token=pad,
    unk_token=unknown,
    bos_token=begin,
    eos_token=end,
  )


def _word_level(vocabulary: int) -> tuple[Any, Any]:
  from tokenizers import Tokenizer as Backend
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tokenizer = Backend(models.WordLevel(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  # Its clean-up joins "circle" and "," again; no word begins with ##.
  tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
  return tokenizer, trainers.WordLevelTrainer(
    vocab_size=vocabulary, special_tokens=list(SPECIALS), show_progress=False
  )


def _byte_level(vocabulary: int) -> tuple[Any, Any]:
  from tokenizers import Tokenizer as Backend
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tokenizer = Backend(models.BPE(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, trainers.BpeTrainer(
    vocab_size=vocabulary,
    special_tokens=list(SPECIALS),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )


def _left_out(row: Any) -> int:
  """Tokens in the pieces after the first, less the special ones of each."""
  return sum(piece.special_tokens_mask.count(0) for piece in row.overflowing)


@contextlib.contextmanager
def _no_notice() -> Iterator[None]:
  """Without "PyTorch was not found", which transformers prints on import."""
  name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  before = os.environ.get(name)
  os.environ[name] = "1"
  try:
    yield
  finally:
    if before is None:
      del os.environ[name]
    else:
      os.environ[name] = before
