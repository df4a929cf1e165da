"""Captions to int32 ids of fixed length, by a tokenizer read or trained."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, Integer

from ldm_jax.data.text.pretrained_tokenizer import (
  UNLIMITED,
  PretrainedTokenizer,
)
from ldm_jax.data.text.prompt_weighting import WeightedPrompt
from ldm_jax.data.text.tokenizer_files import GENERIC, read_tokenizer
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.fields.limits import Count

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")  # ids 0 to 3 of a trained one
BYTES = 256  # every byte is a token of byte-level BPE


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Which `Tokenizer` to read or to train.

  Attributes:
    path: a local folder with a tokenizer; "" trains one on the captions.
    kind: what is trained, whole words or byte-level BPE; both in lower case.
    vocabulary: largest number of ids of a trained tokenizer, its 4 special
      tokens included.
    length: ids per text, begin and end included; longer texts are truncated.
  """

  path: str = ""
  kind: Literal["word", "bpe"] = "word"
  vocabulary: Count = 1000
  length: Count = 32

  def __post_init__(self):
    least = len(SPECIALS) + (BYTES if self.kind == "bpe" else 1)
    if not self.path and self.vocabulary < least:
      raise ValueError(
        f"vocabulary {self.vocabulary} is too small for kind {self.kind!r}; "
        f"it needs {least} at least"
      )
    if self.length < 3:
      raise ValueError(
        f"length {self.length} leaves nothing between begin and end; "
        "it needs 3 at least"
      )

  def build(self, captions: Iterable[str]) -> "Tokenizer":
    """The tokenizer in `path`, or one trained on the captions."""
    if self.path:
      return load(self.path, self.length)
    return Tokenizer(_train(self, captions), self.length)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer of fixed length; threads may share it.

  Attributes:
    backend: of any length, with its special tokens.
    length: ids per text, begin and end included.
    others: (name of their ids in a batch, tokenizer) of other text encoders.
  """

  backend: PretrainedTokenizer
  length: int
  others: tuple[tuple[str, "Tokenizer"], ...] = ()

  @functools.cached_property
  def size(self) -> int:
    """One more than the largest id: rows of an embedding table."""
    return max(self.backend.get_vocab().values()) + 1

  @functools.cached_property
  def empty(self) -> Int32[np.ndarray, " l"]:
    """The ids of "", unconditional in classifier-free guidance."""
    return self.encode([""])[0]

  def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "b l"]:
    """Ids of each text, truncated or padded on the right to `length`."""
    ids = [row.ids for row in self.fixed.encode_batch(list(texts))]
    return np.array(ids, np.int32).reshape(len(texts), self.length)

  def arrays(self, texts: Sequence[str]) -> dict[str, Int32[np.ndarray, "b _"]]:
    """The arrays of a batch: "tokens", and the ids of the `others`."""
    own = [("tokens", self), *self.others]
    return {name: each.encode(texts) for name, each in own}

  def of(self, name: str) -> "Tokenizer":
    """The tokenizer whose ids a batch holds under a name."""
    return dict(self.others).get(name, self)

  def token_weights(
    self, texts: Sequence[WeightedPrompt]
  ) -> Float32[np.ndarray, "b l"]:
    """The weight of each id of `encode`: that of its first character."""
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
    """Ids of the empty text in every row: the unconditional input."""
    return np.broadcast_to(self.encode([""]), like.shape)

  def cut(self, texts: Sequence[str]) -> Int32[np.ndarray, " b"]:
    """How many tokens of each text `encode` truncates."""
    rows = self.fixed.encode_batch(list(texts))
    return np.array([_left_out(row) for row in rows], np.int32)

  def left_out(self, text: str) -> str:
    """The end of a text that `encode` truncates; "" if there is none."""
    row = self.fixed.encode(text)
    begins = [
      begin
      for piece in row.overflowing
      for begin, end in piece.offsets
      if end > begin
    ]
    return text[min(begins) :].strip() if begins else ""

  def unknown(self, text: str) -> list[str]:
    """The parts of a text that become the unknown token."""
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
    """Writes a folder for `load` and transformers.AutoTokenizer."""
    self.backend.save_pretrained(os.fspath(folder))

  @functools.cached_property
  def fixed(self) -> Any:
    """A copy of the tokenizers library that always truncates and pads.

    The original is saved, and must be without truncation and padding.
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
  """The tokenizer in a folder: `save`'s, or transformers' of CLIP, BERT, ...

  Nothing is downloaded and no code of the folder is run.

  Args:
    length: ids per text, begin and end included.

  Raises:
    ConfigError: the folder is missing, or holds no usable tokenizer.
  """
  path = pathlib.Path(folder).expanduser()
  if not path.is_dir():
    raise ConfigError(
      f"no tokenizer folder {str(folder)!r}; expected a local folder such as "
      "runs/x/tokenizer; names of the Hugging Face hub are not looked up"
    )
  try:
    tokenizer = read_tokenizer(path)
  except ConfigError:
    raise
  except Exception as error:  # the libraries raise many types
    detail = " ".join(f"{error}".split())[:200]
    raise ConfigError(f"no tokenizer loads from {path}: {detail}") from error
  _check(tokenizer, path)
  return Tokenizer(tokenizer, length)


def _check(tokenizer: PretrainedTokenizer, path: pathlib.Path) -> None:
  special = tokenizer.all_special_tokens
  if not set(tokenizer.get_vocab()) - {*special, "▁"}:
    raise ConfigError(
      f"the tokenizer in {path} has no words, only its {len(special)} "
      "special tokens; its vocabulary files are missing or empty"
    )
  if (tokenizer.pad_token or tokenizer.eos_token) is None:
    raise ConfigError(f"the tokenizer in {path} has no pad and no end token")


def _train(
  config: TokenizerConfig, captions: Iterable[str]
) -> PretrainedTokenizer:
  """[BOS] text [EOS] over words or bytes; equal captions give equal ids."""
  import tokenizers

  make = _word_level if config.kind == "word" else _byte_level
  tokenizer, trainer = make(config.vocabulary)
  tokenizer.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
  )
  tokenizer.train_from_iterator(captions, trainer)
  if config.kind == "word" and tokenizer.get_vocab_size() == len(SPECIALS):
    raise DataError(
      "no words to train a tokenizer on: all captions are empty; "
      "use a source with captions, or name a tokenizer's folder as path"
    )
  pad, unknown, begin, end = SPECIALS
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{begin} $A {end}", special_tokens=[(begin, 2), (end, 3)]
  )
  config = {
    "backend": "tokenizers",
    "bos_token": begin,
    "eos_token": end,
    "model_max_length": UNLIMITED,
    "pad_token": pad,
    "tokenizer_class": GENERIC,
    "unk_token": unknown,
  }
  return PretrainedTokenizer(tokenizer, config)


def _word_level(vocabulary: int) -> tuple[Any, Any]:
  from tokenizers import Tokenizer as Backend
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tokenizer = Backend(models.WordLevel(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  # Its clean-up joins "circle" and "," again; no token begins with ##.
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
  """Tokens of the overflow, without the special ones of each chunk."""
  return sum(piece.special_tokens_mask.count(0) for piece in row.overflowing)
