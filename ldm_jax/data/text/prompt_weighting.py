"""Prompt weighting in AUTOMATIC1111's syntax: (word:1.3), (word), [word]."""

import re
from typing import NamedTuple

STEP = 1.1  # of a pair of brackets without a number
_TOKENS = re.compile(
  r"\\[()\[\]\\]|[()\[\]]|:\s*[+-]?\d*\.?\d+\s*(?=\))|.", re.S
)


class WeightedPrompt(NamedTuple):
  """A text without its brackets, and a weight for every character of it."""

  text: str
  weights: list[float]


def parse_prompt_weights(text: str) -> WeightedPrompt:
  """Splits a prompt into its text and its weights.

  (word) has weight 1.1, [word] 1 / 1.1, (word:1.3) 1.3; nested brackets
  multiply. A backslash before a bracket makes it a character of the text, and
  so is a bracket without its counterpart.
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
  return WeightedPrompt("".join(letters), [round(w, 6) for w in weights])


def _scale(weights: list[float], start: int, factor: float) -> None:
  weights[start:] = [weight * factor for weight in weights[start:]]
