"""Reads the vocabulary of a sentencepiece model, such as spiece.model.

The file is a protocol buffer, sentencepiece_model.proto's ModelProto: field 1
repeats a piece (1 its text, 2 its score), and field 3 is the normalizer, whose
field 2 is a table of characters that replace others.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ldm_jax.errors import ConfigError
from ldm_jax.files.regular_files import read_regular

_PIECE, _NORMALIZER = 1, 3
_TEXT, _SCORE, _TABLE = 1, 2, 2


class SentencePieces(NamedTuple):
  """A sentencepiece model.

  Attributes:
    pieces: (text, score) by id.
    table: of characters, as the tokenizers library's Precompiled reads it;
      empty for none.
  """

  pieces: list[tuple[str, float]]
  table: bytes


def read_sentencepiece(path: str | os.PathLike[str]) -> SentencePieces:
  """The pieces of a model in their order.

  Raises:
    ConfigError: the file is no sentencepiece model.
  """
  try:
    fields = list(_fields(read_regular(path)))
    pieces = [
      _piece(dict(_fields(value))) for number, value in fields
      if number == _PIECE
    ]  # fmt: skip
    normalizers = [value for number, value in fields if number == _NORMALIZER]
    table = dict(_fields(normalizers[0])).get(_TABLE) if normalizers else None
    table = table or b""
    if not isinstance(table, bytes):
      raise ValueError("the table of characters is no text")
  except (ValueError, TypeError, IndexError, struct.error) as error:
    raise ConfigError(
      f"{path} is no sentencepiece model: {error or 'it is cut off'}"
    ) from None
  return SentencePieces(pieces, table)


def _piece(fields: dict) -> tuple[str, float]:
  """(text, score) of a piece; a score that is left out is 0."""
  (score,) = struct.unpack("<f", fields.get(_SCORE, bytes(4)))
  return fields.get(_TEXT, b"").decode(), score


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
  """(number, value) of every field of a message.

  Raises:
    ValueError, IndexError: the message is malformed, or cut off.
  """
  place = 0
  while place < len(data):
    key, place = _number(data, place)
    kind = key & 7
    if kind == 0:
      value, place = _number(data, place)
      yield key >> 3, value
      continue
    if kind == 2:
      size, place = _number(data, place)
    elif kind in (1, 5):
      size = 8 if kind == 1 else 4
    else:
      raise ValueError(f"a field of kind {kind} at byte {place}")
    if place + size > len(data):
      raise ValueError("it is cut off")
    yield key >> 3, data[place : place + size]
    place += size


def _number(data: bytes, place: int) -> tuple[int, int]:
  """A number of 7 bits a byte, the lowest first, and the place after it."""
  number = shift = 0
  while shift < 64:
    byte = data[place]
    place += 1
    number |= (byte & 127) << shift
    if byte < 128:
      return number, place
    shift += 7
  raise ValueError("a number of more than 64 bits")
