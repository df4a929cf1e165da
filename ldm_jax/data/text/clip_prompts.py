"""Prompts to ids, as towers of fixed length want them: chunk by chunk."""

import copy
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from ldm_jax.data.text.prompt_weighting import WeightedPrompt
from ldm_jax.data.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class PromptSyntax:
  """One tower's tokenizer and how it fills a chunk.

  Attributes:
    tokenizer: its `length` is the tower's, begin and end included.
    padding: the id behind the end token; CLIP ViT-L/14 repeats its end token,
      OpenCLIP's towers have 0.
  """

  tokenizer: Tokenizer
  padding: int

  @functools.cached_property
  def _backend(self) -> Any:
    """A copy that neither cuts nor pads; see `Tokenizer`."""
    import tokenizers

    backend = self.tokenizer.backend.backend_tokenizer
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy

  @property
  def fixed(self) -> Any:
    """One of the tokenizers library that fills a chunk by itself.

    It knows no words of several vectors, and texts of one chunk alone.

    Raises:
      ValueError: a word of several vectors was learned.
    """
    import tokenizers

    many = [i for i, row in self._learned.items() if len(row) > 1]
    if many:
      word = self.tokenizer.backend.convert_ids_to_tokens(many[0])
      raise ValueError(
        f"the learned word {word!r} is of several vectors, which a tokenizer "
        "by itself cannot say; leave the embedding out"
      )
    inner, length = self.tokenizer.backend, self.tokenizer.length
    backend = self._backend.to_str()
    copy = tokenizers.Tokenizer.from_str(backend)
    begin, end = inner.bos_token, inner.eos_token
    copy.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{begin} $A {end}",
      special_tokens=[(begin, inner.bos_token_id), (end, inner.eos_token_id)],
    )
    copy.enable_truncation(length)
    copy.enable_padding(length=length, pad_id=self.padding, pad_token=end)
    return copy

  @functools.cached_property
  def _learned(self) -> dict[int, tuple[int, ...]]:
    """What an added word w stands for: itself, w_1, w_2 and so on.

    So diffusers' load_textual_inversion names a word of several vectors.
    """
    added = self.tokenizer.backend.added_tokens_encoder
    rows = {}
    for word, number in added.items():
      more = (added.get(f"{word}_{i}") for i in itertools.count(1))
      whole = itertools.takewhile(lambda i: i is not None, more)
      rows[number] = (number, *whole)
    return rows

  def ids(self, text: str) -> list[int]:
    """Ids of the whole text, without begin and end."""
    return [j for i in self._tokens(text) for j in self._learned.get(i, [i])]

  def token_weights(self, weighted: WeightedPrompt) -> list[float]:
    """The weight of each of `ids`: that of the first letter it stands for."""
    row = self._backend.encode(weighted.text, add_special_tokens=False)
    return [
      weighted.weights[begin]
      for i, (begin, _) in zip(row.ids, row.offsets, strict=True)
      for _ in self._learned.get(i, [i])
    ]

  def _tokens(self, text: str) -> list[int]:
    """Ids of what stands there: of an added word but the first."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def chunk(self, ids: Sequence[int]) -> list[int]:
    """Begin, at most `length` - 2 ids, end, and padding up to `length`."""
    tokenizer, length = self.tokenizer.backend, self.tokenizer.length
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return row + [self.padding] * (length - len(row))

  def taught(self, word: str, count: int) -> "PromptSyntax":
    """A copy to which the word is so many tokens, new ones: w, w_1, ...

    A word of letters is one only where none stands beside it: "cat" is not to
    be found in "catalog".

    Raises:
      ValueError: it is known already, is no word to the tokenizer, or would be
        part of another one.
    """
    import tokenizers

    names = [word, *(f"{word}_{i}" for i in range(1, count))]
    known = self.tokenizer.backend.get_vocab()
    for name in names:
      # As a piece of words, or as the one token of a text.
      if name in known or len(self._tokens(name)) == 1:
        raise ValueError(
          f"the tokenizer knows the word {name!r}; choose another one (a file "
          "of vectors that does not name its word is known by its file name)"
        )
    tokenizer = copy.deepcopy(self.tokenizer.backend)
    is_whole = re.fullmatch(r"\w(.*\w)?", word) is not None
    tokenizer.add_tokens(
      [tokenizers.AddedToken(name, single_word=is_whole) for name in names]
    )
    taught = PromptSyntax(
      Tokenizer(tokenizer, self.tokenizer.length), self.padding
    )
    is_found = taught.ids(word) == tokenizer.convert_tokens_to_ids(names)
    if not is_found or not self._learned.items() <= taught._learned.items():
      raise ValueError(
        f"{word!r} is no word of its own to the tokenizer; choose another one"
      )
    return taught


@dataclasses.dataclass(frozen=True)
class ClipPrompts:
  """Texts as ids for every tower of a model.

  A text that is longer than a tower is cut into chunks with a begin and an end
  of their own, the way AUTOMATIC1111's and ComfyUI's users know it.
  """

  syntaxes: tuple[PromptSyntax, ...]

  @property
  def room(self) -> int:
    """Ids of a text in one chunk."""
    return self.syntaxes[0].tokenizer.length - 2

  def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "b e l"]:
    """Ids per text and tower; all texts get the chunks the longest needs."""
    ids = [[syntax.ids(text) for text in texts] for syntax in self.syntaxes]
    longest = max(len(row) for rows in ids for row in rows)
    starts = range(0, max(longest, 1), self.room)
    towers = [
      [
        [i for s in starts for i in syntax.chunk(row[s : s + self.room])]
        for row in rows
      ]
      for syntax, rows in zip(self.syntaxes, ids, strict=True)
    ]
    return np.asarray(towers, np.int32).swapaxes(0, 1)

  def token_weights(
    self, texts: Sequence[WeightedPrompt]
  ) -> Float32[np.ndarray, "b l"]:
    """The weight of every id that `encode` gives the first tower; 1 beside."""
    rows = [self.syntaxes[0].token_weights(text) for text in texts]
    starts = range(0, max(1, *map(len, rows)), self.room)
    chunk = lambda part: [1.0, *part, *[1.0] * (self.room + 1 - len(part))]
    weights = [
      [w for s in starts for w in chunk(row[s : s + self.room])] for row in rows
    ]
    return np.asarray(weights, np.float32)

  def empty_like(
    self, like: Int32[np.ndarray, "b e l"]
  ) -> Int32[np.ndarray, "b e l"]:
    """Ids of the empty text in as many chunks."""
    count = like.shape[2] // (self.room + 2)
    rows = [syntax.chunk([]) * count for syntax in self.syntaxes]
    return np.broadcast_to(np.asarray(rows, np.int32), like.shape)
