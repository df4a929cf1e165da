"""Prompt weights and chunks in AUTOMATIC1111's syntax.

(word:1.3), (word) and [word] are weights; BREAK begins a new chunk.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

STEP = 1.1  # of a pair of brackets without a number
_TOKENS = re.compile(
  r"\\[()\[\]\\]|[()\[\]]|:\s*[+-]?\d*\.?\d+\s*(?=\))|.", re.S
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class WeightedPrompt(NamedTuple):
  """A text without its brackets, and a weight for every character of it.

  Attributes:
    breaks: characters, rising, at which a new chunk of tokens begins.
  """

  text: str
  weights: Sequence[float]
  breaks: tuple[int, ...] = ()


def unweighted(text: str) -> WeightedPrompt:
  """A text as it is, of weight 1."""
  return WeightedPrompt(text, [1.0] * len(text))


def parse_prompt_weights(text: str) -> WeightedPrompt:
  """Splits a prompt into its text and its weights.

  (word) has weight 1.1, [word] 1 / 1.1, (word:1.3) 1.3; nested brackets
  multiply. A backslash before a bracket makes it a character of the text, and
  so is a bracket without its counterpart. The word BREAK is taken out.
  """
  letters, weights, opened = [], [], []
  for match in _TOKENS.finditer(text):
    token = match[0]
    if token in "([":
      opened.append((token, len(letters)))
    elif opened and (opened[-1][0] + token) in ("()", "[]"):
      _, start = opened.pop()
      _scale(weights, start, STEP if token == ")" else 1 / STEP)
    elif token[0] == ":" and len(token) > 1 and opened and opened[-1][0] == "(":
      # The closing bracket will multiply by STEP again.
      _scale(weights, opened[-1][1], float(token[1:]) / STEP)
    else:
      plain = token[1:] if token[0] == "\\" and len(token) > 1 else token
      letters += plain
      weights += [1.0] * len(plain)
  for bracket, start in reversed(opened):
    letters.insert(start, bracket)
    weights.insert(start, 1.0)
  return _without_breaks("".join(letters), [round(w, 6) for w in weights])


def _without_breaks(text: str, weights: list[float]) -> WeightedPrompt:
  """The text with a space in place of every BREAK, and where these were."""
  letters, kept, breaks, start = "", [], [], 0
  for match in _BREAK.finditer(text):
    letters += text[start : match.start()] + " "
    kept += [*weights[start : match.start()], 1.0]
    breaks.append(len(letters))
    start = match.end()
  return WeightedPrompt(
    letters + text[start:], kept + weights[start:], tuple(breaks)
  )


def _scale(weights: list[float], start: int, factor: float) -> None:
  weights[start:] = [weight * factor for weight in weights[start:]]
