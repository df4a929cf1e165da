"""Prompts to the inputs of text encoders, each in its own number of chunks."""

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.prompt_syntax import (
  LoraTag,
  PromptPart,
  parts_of,
  phases_of,
  split_loras,
  unread_syntax,
)
from ldm_jax.data.text.prompt_weighting import (
  WeightedPrompt,
  parse_prompt_weights,
  unweighted,
)
from ldm_jax.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 10_000  # of a prompt

# Both sides of guidance are repeated to one length up to so many times, as in
# ComfyUI; beyond, the network is evaluated on each of them.
MAX_REPEATS = 4


class TextInput(NamedTuple):
  """What a text encoder reads of one side of guidance.

  Attributes:
    ids: [b l], or [b e l] for CLIP's encoders.
    is_null: [b], true where it is unconditional.
    weights: of the ids, or None.
    empty: ids of the empty prompt; None without weights.
  """

  ids: Any
  is_null: Any
  weights: Any = None
  empty: Any = None


def weighted_prompts(
  texts: Sequence[str | WeightedPrompt | None],
  has_syntax: bool,
  keeps_none: bool = False,
) -> list[Any]:
  """The texts with their weights.

  Args:
    has_syntax: read (word:1.3), [word] and BREAK in texts.
    keeps_none: or read None as an empty text.

  Raises:
    ConfigError: a text is too long.
  """
  for text in texts:
    if isinstance(text, str) and len(text) > MAX_CHARACTERS:
      raise ConfigError(
        f"a prompt has {len(text)} characters; at most {MAX_CHARACTERS} are "
        "allowed"
      )
  if not keeps_none:
    texts = ["" if text is None else text for text in texts]
  read = parse_prompt_weights if has_syntax else unweighted
  return [read(text) if isinstance(text, str) else text for text in texts]


def encode_text(
  tokenizer: Any, texts: Sequence[WeightedPrompt], has_weights: bool
) -> TextInput:
  """Ids for a text encoder of fixed length; longer prompts are cut."""
  for text in dict.fromkeys(each.text for each in texts):
    if unknown := tokenizer.unknown(text):
      names = ", ".join(unknown)
      logger.warning("the tokenizer has no token for %s (%r)", names, text)
    (lost,) = tokenizer.cut([text])
    if lost:
      logger.warning(
        "the last %d tokens of %r are beyond the length of the text encoder, "
        "which reads %d: %r is left out",
        lost,
        text,
        tokenizer.length,
        tokenizer.left_out(text),
      )
  if any(each.breaks for each in texts):
    logger.warning(
      "BREAK has no effect: this model's text encoder reads one chunk"
    )
  ids = tokenizer.encode([each.text for each in texts])
  is_null = np.asarray([not each.text.strip() for each in texts])
  if not has_weights:
    return TextInput(ids, is_null)
  weights = tokenizer.token_weights(texts)
  return TextInput(ids, is_null, weights, tokenizer.empty_like(ids))


def encode_clip(
  tokenizer: ClipPrompts,
  texts: Sequence[WeightedPrompt | None],
  has_weights: bool,
  chunks: int,
) -> TextInput:
  """Ids for CLIP, in as many chunks as the longest text needs.

  Args:
    texts: None is unconditional.
    chunks: that there are at least.
  """
  given = [unweighted("") if each is None else each for each in texts]
  for each in {prompt.text: prompt for prompt in given}.values():
    if lost := tokenizer.left_out(each):
      logger.warning(
        "CLIP reads the first %d tokens of %r: %r is left out",
        tokenizer.tokens_per_chunk,
        each.text,
        lost,
      )
  is_null = np.asarray([each is None for each in texts])
  ids = tokenizer.encode(given)
  size = tokenizer.tokens_per_chunk + 2  # begin and end
  missing = max(0, chunks * size - ids.shape[2])
  if missing:
    empty = tokenizer.empty_like(ids)[:, :, :size]
    ids = np.concatenate([ids, *[empty] * (missing // size)], axis=2)
  if not has_weights:
    return TextInput(ids, is_null)
  weights = np.pad(
    tokenizer.token_weights(given),
    [(0, 0), (0, 0), (0, missing)],
    constant_values=1.0,
  )
  return TextInput(ids, is_null, weights, tokenizer.empty_like(ids))


def check_ids(texts: Sequence[TextInput], vocabularies: Sequence[int]) -> None:
  """Checks token ids against the embeddings that they are looked up in.

  Args:
    vocabularies: of the text encoders; of several, ids are [b, encoders, l].

  Raises:
    ConfigError: an id is negative, or has no embedding.
  """
  for text in texts:
    ids = np.asarray(text.ids).reshape(
      -1, len(vocabularies), text.ids.shape[-1]
    )
    for i, size in enumerate(vocabularies):
      wrong = ids[:, i][(ids[:, i] < 0) | (ids[:, i] >= size)]
      if wrong.size:
        raise ConfigError(
          f"the tokenizer gives id {wrong[0]}, and the text encoder has "
          f"embeddings of ids 0 to {size - 1}; use the tokenizer that belongs "
          "to this model (--tokenizer)"
        )


def with_equal_lengths(
  sides: Sequence[TextInput], chunk: int
) -> list[TextInput]:
  """The sides of guidance, repeated to one number of chunks.

  Attention to a context is the same as to that context repeated: every token
  has as many copies. So a side does not depend on the others, as it would if
  chunks were appended. Sides that would need more than `MAX_REPEATS` copies
  stay as they are.

  Args:
    chunk: ids of a chunk.
  """
  counts = [side.ids.shape[-1] // chunk for side in sides]
  total = math.lcm(*counts)
  if total // min(counts) > MAX_REPEATS:
    return list(sides)
  return [
    _repeated(side, total // count)
    for side, count in zip(sides, counts, strict=True)
  ]


def _repeated(side: TextInput, times: int) -> TextInput:
  if times == 1:
    return side
  repeat = lambda x: None if x is None else np.concatenate([x] * times, axis=-1)
  return TextInput(
    repeat(side.ids), side.is_null, repeat(side.weights), repeat(side.empty)
  )


class Variant(NamedTuple):
  """The prompts of some of the steps.

  Attributes:
    parts: one, or several that are composed.
    negative: None is unconditional.
  """

  parts: tuple[PromptPart, ...]
  negative: WeightedPrompt | None


class ImagePrompts(NamedTuple):
  """The prompts of one image.

  Attributes:
    variants: each of some of the steps.
    schedule: (fraction of the steps at which it ends, place of its variant).
    loras: that the prompt names.
  """

  variants: tuple[Variant, ...]
  schedule: tuple[tuple[float, int], ...]
  loras: tuple[LoraTag, ...] = ()

  @property
  def is_plain(self) -> bool:
    """Whether it is one prompt for all steps."""
    return len(self.variants) == 1 and len(self.variants[0].parts) == 1

  def without_negative(self) -> "ImagePrompts":
    """The same where guidance is off, but for composed prompts."""
    variants = [
      each._replace(negative=None) if len(each.parts) == 1 else each
      for each in self.variants
    ]
    return self._replace(variants=tuple(variants))


def image_prompts(
  prompt: str, negative: str | None, has_syntax: bool, steps: int
) -> ImagePrompts:
  """The prompts of an image, by the syntax of AUTOMATIC1111 if asked for.

  Without it they are read as they are, but for <lora:NAME:0.8>, which is
  always taken out.

  Raises:
    ConfigError: a weight is out of its range.
  """
  prompt, loras = split_loras(prompt)
  if not has_syntax:
    away = None if negative is None else unweighted(negative)
    part = PromptPart(unweighted(prompt))
    return ImagePrompts((Variant((part,), away),), ((1.0, 0),), loras)
  sides = [phases_of(prompt, steps), phases_of(negative or "", steps)]
  ends = sorted({phase.end for side in sides for phase in side})
  found: dict[tuple[str, ...], int] = {}
  schedule = []
  for end in ends:
    texts = tuple(
      next(phase.text for phase in side if phase.end >= end) for side in sides
    )
    schedule.append((end, found.setdefault(texts, len(found))))
  variants = [
    Variant(
      tuple(parts_of(text)),
      None if negative is None else parse_prompt_weights(away),
    )
    for text, away in found
  ]
  return ImagePrompts(tuple(variants), tuple(schedule), loras)


def warn_of_unread_syntax(
  texts: Sequence[str], negatives: Sequence[str], has_syntax: bool
) -> None:
  """Logs what of other programs' syntax is read as plain text."""
  for text in dict.fromkeys([*texts, *negatives]):
    names = unread_syntax(text, has_syntax)
    if has_syntax and text in negatives and "AND" in unread_syntax(text, False):
      names.append("AND of a negative prompt")
    if names:
      hint = "" if has_syntax else "; emphasis (--emphasis) reads weights, "
      hint += "" if has_syntax else "BREAK, AND, [a:b:0.5] and [a|b]"
      logger.warning(
        "%s in %r is read as plain text%s", ", ".join(names), text[:80], hint
      )


def check_negative(negative: str | None) -> None:
  """Raises ConfigError for a LoRA in a negative prompt."""
  if negative and split_loras(negative)[1]:
    raise ConfigError(
      "a negative prompt names a LoRA, which belongs into the prompt; a LoRA "
      "is merged for both sides of guidance"
    )
