"""The tokenizers of a run in its folder: tokenizer/ and t5_tokenizer/."""

import dataclasses
import os

from ldm_jax.data.text.tokenizers import Tokenizer, TokenizerConfig, load

T5_TOKENS = "t5_tokens"  # the ids that a T5Embedder reads
_FOLDER, _T5_FOLDER = "tokenizer", "t5_tokenizer"


def with_t5(tokenizer: Tokenizer, t5: Tokenizer) -> Tokenizer:
  """The tokenizer with that of T5 next to it."""
  return dataclasses.replace(tokenizer, others=((T5_TOKENS, t5),))


def t5_of(tokenizer: Tokenizer | None) -> Tokenizer | None:
  """The tokenizer of T5 next to another, or None."""
  return None if tokenizer is None else dict(tokenizer.others).get(T5_TOKENS)


def save_tokenizers(tokenizer: Tokenizer, folder: str) -> None:
  """Writes a tokenizer, and T5's if it is next to it."""
  tokenizer.save(os.path.join(folder, _FOLDER))
  if (t5 := t5_of(tokenizer)) is not None:
    t5.save(os.path.join(folder, _T5_FOLDER))


def load_tokenizers(
  folder: str, spec: TokenizerConfig | None, t5_spec: TokenizerConfig | None
) -> Tokenizer | None:
  """What `save_tokenizers` wrote; None without a `spec`.

  Raises:
    ConfigError: a tokenizer is missing or damaged.
  """
  if spec is None:
    return None
  read = lambda name, each: load(os.path.join(folder, name), each.length)
  found = read(_FOLDER, spec)
  if t5_spec is None:
    return found
  return with_t5(found, read(_T5_FOLDER, t5_spec))
