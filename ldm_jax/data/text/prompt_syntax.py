"""AUTOMATIC1111's prompt syntax beyond weights: what a prompt is at each step.

[a:b:0.5] is a, and from half of the steps on b; [b:0.5] and [a::0.5] leave the
other side empty, and a number of 1 or more counts steps. [a|b] alternates.
"a AND b :1.5" is two prompts, composed with weights (Liu et al. 2022, eq. 11).
<lora:NAME:0.8> is taken out and names a LoRA.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from ldm_jax.data.text.prompt_weighting import (
  WeightedPrompt,
  parse_prompt_weights,
)
from ldm_jax.errors import ConfigError

_AND = re.compile(r"\bAND\b")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_PART_WEIGHT = re.compile(rf"(.*?)\s*:\s*({_NUMBER})\s*", re.S)
_LORA = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([^<>]*))?>")
MAX_DEPTH = 20  # of edits within edits
MAX_WEIGHT = 100.0  # of a LoRA, and of a composed prompt

# What is read only with prompt syntax, and what is never read, as other
# programs and their extensions write it.
_SYNTAX = {
  "(word:1.3)": re.compile(rf"\([^()]*:\s*{_NUMBER}\s*\)"),
  "BREAK": re.compile(r"\bBREAK\b"),
  "AND": _AND,
  "[a:b:0.5]": re.compile(rf"\[[^\[\]]*:\s*{_NUMBER}\s*\]"),
  "[a|b]": re.compile(r"\[[^\[\]]*\|[^\[\]]*\]"),
}
_UNKNOWN = {
  "<hypernet:...>": re.compile(r"<(?!lora:|lyco:)\w+:[^<>]*>"),
  "{a|b}": re.compile(r"\{[^{}]*\|[^{}]*\}"),
  "__name__": re.compile(r"\b__\w+__\b"),
  "embedding:name (write the name alone)": re.compile(r"\bembedding:\S+"),
}


class PromptPart(NamedTuple):
  """One of the prompts between AND, and its weight."""

  prompt: WeightedPrompt
  weight: float = 1.0


class PromptPhase(NamedTuple):
  """A prompt for a part of the steps.

  Attributes:
    end: fraction of the steps at which the next phase begins; 1 of the last.
    text: the prompt in these steps, without [a:b:0.5] and [a|b].
  """

  end: float
  text: str


class LoraTag(NamedTuple):
  """A LoRA that a prompt names, and its scale."""

  name: str
  scale: float


def split_loras(text: str) -> tuple[str, tuple[LoraTag, ...]]:
  """A prompt without <lora:NAME:0.8>, and the LoRAs that it names.

  Raises:
    ConfigError: a scale is no number.
  """
  tags = []
  for name, scale in _LORA.findall(text):
    if not re.fullmatch(_NUMBER, scale or "1") or abs(float(scale or 1)) > (
      MAX_WEIGHT
    ):
      raise ConfigError(
        f"<lora:{name}:{scale}>: the scale must be a number within "
        f"+-{MAX_WEIGHT:g}, such as <lora:{name}:0.8>"
      )
    tags.append(LoraTag(name.strip(), float(scale or 1)))
  return (_LORA.sub("", text) if tags else text), tuple(tags)


def unread_syntax(text: str, has_syntax: bool) -> list[str]:
  """What of other programs' syntax in a prompt is read as plain text.

  Args:
    has_syntax: whether the syntax of this file is read.
  """
  kinds = _UNKNOWN if has_syntax else {**_SYNTAX, **_UNKNOWN}
  return [name for name, pattern in kinds.items() if pattern.search(text)]


def parts_of(text: str) -> list[PromptPart]:
  """The prompts between AND, with weights such as those of "a AND b :1.5"."""
  pieces = _AND.split(text)
  if len(pieces) == 1:
    return [PromptPart(parse_prompt_weights(text))]
  parts = []
  for piece in pieces:
    weight = 1.0
    if match := _PART_WEIGHT.fullmatch(piece):
      piece, weight = match[1], float(match[2])
    if abs(weight) > MAX_WEIGHT:
      raise ConfigError(
        f"a prompt of AND has weight {weight:g}; it must be within "
        f"+-{MAX_WEIGHT:g}"
      )
    parts.append(PromptPart(parse_prompt_weights(piece.strip()), weight))
  return parts


def phases_of(text: str, steps: int) -> list[PromptPhase]:
  """The prompt from step to step; one phase if it never changes."""
  tree = _parse(text)
  if all(isinstance(node, str) for node in tree):
    return [PromptPhase(1.0, text)]
  texts = [_at(tree, step, steps) for step in range(steps)]
  phases, done = [], 0
  for found, group in itertools.groupby(texts):
    done += len(list(group))
    phases.append(PromptPhase(done / steps, found))
  return phases


class _Edit(NamedTuple):
  """[before:after:when]."""

  before: list
  after: list
  when: float


class _Alternation(NamedTuple):
  """[a|b|...], one a step."""

  options: list


def _parse(text: str, depth: int = 0) -> list:
  """Texts, edits and alternations in a row; nested ones up to MAX_DEPTH."""
  if depth > MAX_DEPTH:
    return [text]
  nodes, closing, start, i = [], _closing(text), 0, 0
  while i < len(text):
    end = closing.get(i)
    node = None if end is None else _bracket(text[i + 1 : end], depth + 1)
    if node is None:
      i += 1
      continue
    nodes += [text[start:i], node]
    start = i = end + 1
  return [*nodes, text[start:]]


def _closing(text: str) -> dict[int, int]:
  """Where every square bracket is closed, by where it is."""
  opened, closing = [], {}
  for i, letter in _letters(text):
    if letter == "[":
      opened.append(i)
    elif letter == "]" and opened:
      closing[opened.pop()] = i
  return closing


def _letters(text: str) -> Iterator[tuple[int, str]]:
  """Characters that no backslash precedes, and where they are."""
  is_escaped = False
  for i in range(len(text)):
    if not is_escaped and text[i] != "\\":
      yield i, text[i]
    is_escaped = text[i] == "\\" and not is_escaped


def _bracket(inner: str, depth: int) -> _Edit | _Alternation | None:
  """What is between square brackets, if it is more than a weight."""
  options = _split(inner, "|")
  if len(options) > 1:
    return _Alternation([_parse(each, depth) for each in options])
  fields = _split(inner, ":")
  if len(fields) not in (2, 3) or not re.fullmatch(
    rf"\s*{_NUMBER}\s*", fields[-1]
  ):
    return None
  *texts, when = fields
  before, after = texts if len(texts) == 2 else ("", texts[0])
  return _Edit(_parse(before, depth), _parse(after, depth), float(when))


def _split(text: str, separator: str) -> list[str]:
  """Splits outside brackets."""
  pieces, depth, start = [], 0, 0
  for i, letter in _letters(text):
    depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(letter, 0)
    if letter == separator and depth == 0:
      pieces.append(text[start:i])
      start = i + 1
  return [*pieces, text[start:]]


def _at(tree: list, step: int, steps: int) -> str:
  """The text at a step, from 0."""
  found = ""
  for node in tree:
    if isinstance(node, str):
      found += node
    elif isinstance(node, _Alternation):
      found += _at(node.options[step % len(node.options)], step, steps)
    else:
      when = node.when if node.when >= 1 else node.when * steps
      side = node.before if step < int(when) else node.after
      found += _at(side, step, steps)
  return found
