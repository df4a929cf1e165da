"""numpy arrays in pickles, built only when they are used.

Nothing is copied while a pickle is read, so that a file that refers to one
string a million times takes its memory once.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.mmap_files import check_shape

FORMATS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
  """Bytes as a latin-1 string, as pickles of protocol 2 store them."""

  text: Any

  def read(self) -> bytes:
    """The bytes themselves."""
    try:
      return self.text.encode("latin1")
    except (AttributeError, UnicodeError):
      raise WeightsError("malformed bytes: not a latin-1 string") from None


@dataclasses.dataclass(eq=False)
class Format:
  """A numpy dtype: its name, and its byte order once the state is set."""

  name: Any
  order: Any = "|"

  def read(self) -> np.dtype:
    """The dtype; only those of numbers are allowed."""
    if self.name not in (*FORMATS, "b1") or self.order not in ("<", ">", "|"):
      raise WeightsError(f"refused an array of dtype {str(self.name)[:40]!r}")
    return np.dtype(self.order.replace("|", "=") + self.name)


@dataclasses.dataclass(eq=False)
class NumpyArray:
  """An array; the state, set later, has its shape, dtype and data."""

  state: Any = None

  def read(self, data: Any) -> np.ndarray:
    """The array, as a view of its bytes.

    Raises:
      WeightsError: its state is not one of numpy's.
    """
    match self.state:
      case (_, tuple() as shape, Format() as form, bool(is_fortran), _):
        dtype = form.read()
      case _:
        raise WeightsError("malformed array: its state is not numpy's")
    check_shape(shape)
    if 0 in shape:
      return np.empty(shape, dtype)
    if not isinstance(data, bytes) or (
      math.prod(shape) * dtype.itemsize != len(data)
    ):
      raise WeightsError(f"malformed array: its bytes do not fill {shape}")
    order = "F" if is_fortran else "C"
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def encoded(text: Any = None, *_: Any) -> Encoded:
  """A call of _codecs.encode."""
  return Encoded(text)


def format_of(name: Any = None, *_: Any) -> Format:
  """A call of numpy.dtype."""
  return Format(name)


def blank(*_: Any) -> NumpyArray:
  """A call of numpy's _reconstruct."""
  return NumpyArray()
