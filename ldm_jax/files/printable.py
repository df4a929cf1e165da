"""Text of unknown origin, made safe for a terminal."""

_SPACES = frozenset("\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029")
_JOINERS = frozenset("\u200c\u200d")  # of emoji, Persian and Indic scripts


def printable(text: str, keep: str = "") -> str:
  """`text` on one line, with control characters as escapes such as \\x1b.

  Breaks of lines become spaces. So do not the characters of `keep`, which
  stay. Characters that change the direction of text are escaped too.
  """
  if text.isprintable():
    return text
  return "".join(
    c if c.isprintable() or c in keep or c in _JOINERS else _escaped(c)
    for c in text
  )


def _escaped(character: str) -> str:
  if character in _SPACES or character.isspace():
    return " "
  return character.encode("unicode_escape").decode()
