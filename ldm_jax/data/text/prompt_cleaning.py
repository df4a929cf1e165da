"""Prompts as users give them, cleaned for tokenizers."""

import unicodedata
from collections.abc import Callable

from ldm_jax.errors import ConfigError

MAX_CHARACTERS = 10_000  # the longest text encoders read a few hundred tokens
KEPT = "\n\t"


def clean_prompt(text: str, warn: Callable[[str], None]) -> str:
  """The prompt in Unicode's form NFC, without control characters.

  Args:
    warn: called with a line if characters are left out.

  Raises:
    ConfigError: it is too long, or not Unicode text.
  """
  if len(text) > MAX_CHARACTERS:
    raise ConfigError(
      f"a prompt of {len(text)} characters; the limit is {MAX_CHARACTERS}, and "
      "models read far fewer"
    )
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ConfigError(
      f"a prompt is not Unicode text: {error.reason} at character {error.start}"
    ) from None
  kept = "".join(
    c for c in text if c in KEPT or unicodedata.category(c) != "Cc"
  )
  if len(kept) < len(text):
    warn(f"note: {len(text) - len(kept)} control characters are left out")
  return unicodedata.normalize("NFC", kept)
