"""Prompts to token ids for CLIP text encoders, in chunks of fixed length."""

import bisect
import copy
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from ldm_jax.data.text.prompt_weighting import WeightedPrompt, unweighted
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError


class Chunk(NamedTuple):
  """Ids that a text encoder reads at once, without begin, end and padding.

  Attributes:
    begin: the place in the text of its first character.
  """

  ids: list[int]
  weights: list[float]
  begin: int = 0


@dataclasses.dataclass(frozen=True)
class PromptSyntax:
  """The tokenizer of one text encoder, and how it pads a chunk.

  Attributes:
    tokenizer: its `length` is the encoder's, begin and end tokens included.
    padding: the id after the end token; CLIP ViT-L/14 repeats its end token,
      OpenCLIP's text encoders have 0.
  """

  tokenizer: Tokenizer
  padding: int

  @functools.cached_property
  def _backend(self) -> Any:
    """A copy that neither truncates nor pads; see `Tokenizer.fixed`."""
    import tokenizers

    backend = self.tokenizer.backend.backend_tokenizer
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy

  @property
  def fixed(self) -> Any:
    """A tokenizers.Tokenizer that adds begin and end, truncates and pads.

    For exported programs. It encodes one chunk.

    Raises:
      ConfigError: a token of several vectors was added (textual inversion),
        which needs `ids`.
    """
    import tokenizers

    several = [i for i, row in self._added.items() if len(row) > 1]
    if several:
      token = self.tokenizer.backend.convert_ids_to_tokens(several[0])
      raise ConfigError(
        f"the added token {token!r} stands for several vectors, which a "
        "tokenizer file cannot express; leave the embedding out"
      )
    inner, length = self.tokenizer.backend, self.tokenizer.length
    copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
    begin, end = inner.bos_token, inner.eos_token
    copy.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{begin} $A {end}",
      special_tokens=[(begin, inner.bos_token_id), (end, inner.eos_token_id)],
    )
    copy.enable_truncation(length)
    copy.enable_padding(length=length, pad_id=self.padding, pad_token=end)
    return copy

  @functools.cached_property
  def _added(self) -> dict[int, tuple[int, ...]]:
    """The ids that an added token stands for: of itself, token_1, token_2, ...

    The names that diffusers' load_textual_inversion gives the vectors of one
    token.
    """
    added = self.tokenizer.backend.added_tokens_encoder
    rows = {}
    for token, number in added.items():
      more = (added.get(f"{token}_{i}") for i in itertools.count(1))
      known = itertools.takewhile(lambda i: i is not None, more)
      rows[number] = (number, *known)
    return rows

  def ids(self, text: str) -> list[int]:
    """Ids of the whole text, without begin and end."""
    return [j for i in self._tokens(text) for j in self._added.get(i, [i])]

  def chunks(self, prompt: WeightedPrompt) -> list["Chunk"]:
    """The ids of a text by chunk, as many as fit into each; one at least.

    The weight of an id is that of its first character. All vectors of an added
    token are in one chunk. As in AUTOMATIC1111, a chunk between two breaks may
    be empty, and one after the last break is not.
    """
    row = self._backend.encode(prompt.text, add_special_tokens=False)
    found, size, section = [Chunk([], [])], self.tokenizer.length - 2, 0
    for i, (begin, _) in zip(row.ids, row.offsets, strict=True):
      passed = bisect.bisect_right(prompt.breaks, begin)
      found += [Chunk([], [], begin) for _ in range(passed - section)]
      section, ids = passed, self._added.get(i, (i,))
      if len(found[-1].ids) + len(ids) > size:
        found.append(Chunk([], [], begin))
      found[-1].ids.extend(ids)
      found[-1].weights.extend([prompt.weights[begin]] * len(ids))
    return found

  def _tokens(self, text: str) -> list[int]:
    """Ids as the tokenizer gives them: one for an added token."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def chunk(self, ids: Sequence[int]) -> list[int]:
    """Begin, at most `length` - 2 ids, end, and padding up to `length`."""
    tokenizer, length = self.tokenizer.backend, self.tokenizer.length
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return row + [self.padding] * (length - len(row))

  def with_token(self, token: str, count: int) -> "PromptSyntax":
    """A copy with new tokens token, token_1, ..., `count` in all.

    A token of letters matches whole words only: "cat" not within "catalog".

    Raises:
      ConfigError: the tokenizer has it already, normalizes it to another text,
        or would find it within another added token; or a chunk is too short
        for its vectors.
    """
    import tokenizers

    most = self.tokenizer.length - 2
    if count > most:
      raise ConfigError(
        f"the token {token!r} stands for {count} vectors; a chunk of the text "
        f"encoder holds {most}"
      )
    names = [token, *(f"{token}_{i}" for i in range(1, count))]
    known = self.tokenizer.backend.get_vocab()
    for name in names:
      # As a part of words, or as the one token of a text.
      if name in known or len(self._tokens(name)) == 1:
        raise ConfigError(
          f"the tokenizer has the token {name!r} already; choose another one "
          "(an embedding file without a token is named by its file name)"
        )
    backend = copy.deepcopy(self.tokenizer.backend)
    is_whole = re.fullmatch(r"\w(.*\w)?", token) is not None
    backend.add_tokens(
      [tokenizers.AddedToken(name, single_word=is_whole) for name in names]
    )
    extended = PromptSyntax(
      Tokenizer(backend, self.tokenizer.length), self.padding
    )
    is_found = extended.ids(token) == backend.convert_tokens_to_ids(names)
    if not is_found or not self._added.items() <= extended._added.items():
      raise ConfigError(
        f"the tokenizer does not find {token!r} as a token of its own; choose "
        "another one"
      )
    return extended


@dataclasses.dataclass(frozen=True)
class ClipPrompts:
  """Prompts as ids for every text encoder of a model.

  A prompt that is longer than a text encoder is split into chunks, each with
  its own begin and end token, as in AUTOMATIC1111 and ComfyUI.

  Attributes:
    syntaxes: one per text encoder.
    max_chunks: what is longer is cut; None for no limit. SD3 and FLUX read one
      chunk.
  """

  syntaxes: tuple[PromptSyntax, ...]
  max_chunks: int | None = None

  @property
  def tokens_per_chunk(self) -> int:
    """Ids of a text in one chunk, without begin and end."""
    return self.syntaxes[0].tokenizer.length - 2

  def count_chunks(self, text: str | WeightedPrompt) -> int:
    """Chunks of a text, the most that any encoder's tokenizer needs."""
    prompt = unweighted(text) if isinstance(text, str) else text
    return max(len(self._chunks(syntax, prompt)) for syntax in self.syntaxes)

  def left_out(self, prompt: WeightedPrompt) -> str:
    """The end of a text that no encoder reads; "" if there is none."""
    most = self.max_chunks
    if most is None:
      return ""
    chunks = [syntax.chunks(prompt) for syntax in self.syntaxes]
    if any(len(each) <= most for each in chunks):
      return ""
    return prompt.text[max(each[most].begin for each in chunks) :].strip()

  def _chunks(
    self, syntax: PromptSyntax, prompt: WeightedPrompt
  ) -> list[Chunk]:
    """The chunks of a text that are read."""
    return syntax.chunks(prompt)[: self.max_chunks]

  def encode(
    self, texts: Sequence[str | WeightedPrompt]
  ) -> Int32[np.ndarray, "b e l"]:
    """Ids per text and encoder; all get as many chunks as the longest text.

    Shorter texts end in chunks of the empty prompt.
    """
    ids = lambda syntax, chunk: syntax.chunk(chunk.ids)
    return np.asarray(self._rows(texts, ids), np.int32)

  def token_weights(
    self, texts: Sequence[str | WeightedPrompt]
  ) -> Float32[np.ndarray, "b e l"]:
    """The weight of each id of `encode`; 1 for special tokens."""
    size = self.tokens_per_chunk
    weights = lambda _, chunk: [
      1.0, *chunk.weights, *[1.0] * (size + 1 - len(chunk.weights)),
    ]  # fmt: skip
    return np.asarray(self._rows(texts, weights), np.float32)

  def _rows(
    self,
    texts: Sequence[str | WeightedPrompt],
    values: Callable[[PromptSyntax, "Chunk"], list],
  ) -> list[list[list]]:
    """By text and encoder the values of all chunks in a row."""
    prompts = [
      unweighted(text) if isinstance(text, str) else text for text in texts
    ]
    chunks = [
      [self._chunks(syntax, prompt) for syntax in self.syntaxes]
      for prompt in prompts
    ]
    most = max(len(each) for row in chunks for each in row)
    pad = lambda each: each + [Chunk([], [])] * (most - len(each))
    return [
      [
        [value for chunk in pad(each) for value in values(syntax, chunk)]
        for syntax, each in zip(self.syntaxes, row, strict=True)
      ]
      for row in chunks
    ]

  def empty_like(
    self, like: Int32[np.ndarray, "b e l"]
  ) -> Int32[np.ndarray, "b e l"]:
    """Ids of the empty prompt in as many chunks: the unconditional input."""
    count = like.shape[2] // (self.tokens_per_chunk + 2)
    rows = [syntax.chunk([]) * count for syntax in self.syntaxes]
    return np.broadcast_to(np.asarray(rows, np.int32), like.shape)
