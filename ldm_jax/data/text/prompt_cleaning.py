"""Prompts as users give them, made fit to be read."""

import unicodedata
from collections.abc import Callable

MOST = 10_000  # characters; the longest encoders hear a few hundred words
KEPT = "\n\t"


def clean_prompt(text: str, say: Callable[[str], None]) -> str:
  """A prompt without characters that no tokenizer should see.

  Control characters are left out, which `say` is told of, and what can be
  written in two ways is written in one (Unicode's form NFC).

  Raises:
    ValueError: it is too long, or not Unicode text.
  """
  if len(text) > MOST:
    raise ValueError(
      f"a prompt of {len(text)} characters; {MOST} are the most, and models "
      "hear far fewer"
    )
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"a prompt is no Unicode text: {error.reason} at character {error.start}"
    ) from None
  kept = "".join(
    c for c in text if c in KEPT or unicodedata.category(c) != "Cc"
  )
  if len(kept) < len(text):
    say(f"note: {len(text) - len(kept)} control characters are left out")
  return unicodedata.normalize("NFC", kept)
