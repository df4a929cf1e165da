"""A tokenizer of the tokenizers library with its special tokens.

What transformers' PreTrainedTokenizerFast is, in the same folder format and
with the same names of attributes, without transformers.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

# In the order in which transformers adds them to a vocabulary.
SPECIAL_TOKENS = (
  *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token"),
  *("cls_token", "mask_token"),
)
UNLIMITED = int(1e30)  # transformers' model_max_length if none is given

# transformers' clean_up_tokenization, for models of whole words.
_CLEANED = (
  *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
  *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve")),
  (" 're", "'re"),
)


@dataclasses.dataclass(frozen=True)
class PretrainedTokenizer:
  """A tokenizer and the content of its tokenizer_config.json.

  Attributes:
    backend_tokenizer: a tokenizers.Tokenizer.
    config: special tokens by name ("bos_token", ...), "tokenizer_class" and
      what else transformers keeps with a tokenizer.
  """

  backend_tokenizer: Any
  config: Mapping[str, Any]

  def __len__(self) -> int:
    return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

  @property
  def bos_token(self) -> str | None:
    return self.config.get("bos_token")

  @property
  def eos_token(self) -> str | None:
    return self.config.get("eos_token")

  @property
  def pad_token(self) -> str | None:
    return self.config.get("pad_token")

  @property
  def bos_token_id(self) -> int | None:
    return self._id("bos_token")

  @property
  def eos_token_id(self) -> int | None:
    return self._id("eos_token")

  @property
  def pad_token_id(self) -> int | None:
    return self._id("pad_token")

  @property
  def unk_token_id(self) -> int | None:
    return self._id("unk_token")

  def _id(self, name: str) -> int | None:
    token = self.config.get(name)
    return None if token is None else self.convert_tokens_to_ids(token)

  @property
  def all_special_tokens(self) -> list[str]:
    """The special tokens, each once."""
    tokens = [self.config.get(name) for name in SPECIAL_TOKENS]
    tokens += self.config.get("extra_special_tokens") or []
    return list(dict.fromkeys(token for token in tokens if token is not None))

  @property
  def added_tokens_encoder(self) -> dict[str, int]:
    """{token: id} of the tokens that were added to the model's, by id."""
    added = self.backend_tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in sorted(added.items())}

  def get_vocab(self) -> dict[str, int]:
    """{token: id}, added tokens included."""
    return self.backend_tokenizer.get_vocab(with_added_tokens=True)

  def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
    """The id of a token, the unknown token's if it is not in the vocabulary.

    For a list of tokens, a list of ids.
    """
    if not isinstance(tokens, str):
      return [self.convert_tokens_to_ids(token) for token in tokens]
    number = self.backend_tokenizer.token_to_id(tokens)
    if number is None and tokens != self.config.get("unk_token"):
      return self.unk_token_id
    return number

  def convert_ids_to_tokens(self, number: int) -> str | None:
    """The token of an id."""
    return self.backend_tokenizer.id_to_token(int(number))

  def add_tokens(self, tokens: Sequence[Any]) -> int:
    """Appends tokens to the vocabulary in place; returns how many are new."""
    return self.backend_tokenizer.add_tokens(list(tokens))

  def decode(
    self, ids: Sequence[int], skip_special_tokens: bool = False
  ) -> str:
    """The text of ids, as transformers' class of the same name gives it."""
    text = self.backend_tokenizer.decode(
      list(ids), skip_special_tokens=skip_special_tokens
    )
    if self.config.get("tokenizer_class") == "CLIPTokenizer":
      text = text.replace("</w>", " ").strip()
    model = type(self.backend_tokenizer.model).__name__
    if self.config.get("clean_up_tokenization_spaces") and model != "BPE":
      for old, new in _CLEANED:
        text = text.replace(old, new)
    return text

  def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    Of byte-pair encodings also vocab.json and merges.txt, which transformers
    4's CLIPTokenizer reads alone, and added_tokens.json where there are any.
    """
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
      dict(self.config), indent=2, sort_keys=True, ensure_ascii=False
    )
    (path / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    self.backend_tokenizer.save(str(path / "tokenizer.json"))
    self._save_pair(path)

  def _save_pair(self, path: pathlib.Path) -> None:
    """Writes the two files of a byte-pair encoding."""
    model = json.loads(self.backend_tokenizer.to_str())["model"]
    if model.get("type") != "BPE":
      return
    vocabulary = model["vocab"]
    pairs = [
      pair if isinstance(pair, str) else " ".join(pair)
      for pair in model["merges"]
    ]
    # The first line is a comment, which readers skip.
    lines = "\n".join(["#version: 0.2", *pairs]) + "\n"
    (path / "merges.txt").write_text(lines, encoding="utf-8")
    files = {"vocab.json": vocabulary}
    if added := {
      k: v for k, v in self.get_vocab().items() if k not in vocabulary
    }:
      files["added_tokens.json"] = added
    for name, tokens in files.items():
      text = json.dumps(tokens, ensure_ascii=False)
      (path / name).write_text(text + "\n", encoding="utf-8")
