"""Weights within prompts, as web UIs write them: (word:1.3) and [word]."""

import re
from typing import NamedTuple

STEP = 1.1  # of a bare pair of brackets
_PIECES = re.compile(
  r"\\[()\[\]\\]|[()\[\]]|:\s*[+-]?\d*\.?\d+\s*(?=\))|.", re.S
)


class WeightedPrompt(NamedTuple):
  """A text without its brackets, and a weight for every character of it."""

  text: str
  weights: list[float]


def parse_prompt_weights(text: str) -> WeightedPrompt:
  """What a prompt says once its weights are taken out.

  (word) counts 1.1 times, [word] one 1.1th, (word:1.3) 1.3 times; brackets
  within brackets multiply, a backslash makes a bracket a letter. Brackets
  that nothing closes are letters too.
  """
  letters, weights, opened = [], [], []
  for match in _PIECES.finditer(text):
    piece = match[0]
    if piece in "([":
      opened.append((piece, len(letters)))
    elif opened and (opened[-1][0] + piece) in ("()", "[]"):
      _, start = opened.pop()
      _scale(weights, start, STEP if piece == ")" else 1 / STEP)
    elif piece[0] == ":" and len(piece) > 1 and opened and opened[-1][0] == "(":
      # The closing bracket will multiply by STEP again.
      _scale(weights, opened[-1][1], float(piece[1:]) / STEP)
    else:
      plain = piece[1:] if piece[0] == "\\" and len(piece) > 1 else piece
      letters += plain
      weights += [1.0] * len(plain)
  for bracket, start in reversed(opened):
    letters.insert(start, bracket)
    weights.insert(start, 1.0)
  return WeightedPrompt("".join(letters), [round(w, 6) for w in weights])


def _scale(weights: list[float], start: int, factor: float) -> None:
  weights[start:] = [weight * factor for weight in weights[start:]]
