"""numpy's arrays as pickles spell them, made when somebody asks for them.

Nothing is copied while a pickle is read, so that a file which names one text a
million times holds it once.
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
  """Bytes, each a character of a text, as pickles of protocol 2 have them."""

  text: Any

  def read(self) -> bytes:
    """The bytes themselves."""
    try:
      return self.text.encode("latin1")
    except (AttributeError, UnicodeError):
      raise WeightsError("malformed bytes: they are no such text") from None


@dataclasses.dataclass(eq=False)
class Format:
  """numpy's dtype: what and, once its state is set, in which order."""

  name: Any
  order: Any = "|"

  def read(self) -> np.dtype:
    """The dtype, if it is of numbers."""
    if self.name not in (*FORMATS, "b1") or self.order not in ("<", ">", "|"):
      raise WeightsError(f"refused an array of dtype {str(self.name)[:40]!r}")
    return np.dtype(self.order.replace("|", "=") + self.name)


@dataclasses.dataclass(eq=False)
class NumpyArray:
  """An array whose state, once it is set, says all of it."""

  state: Any = None

  def read(self, data: Any) -> np.ndarray:
    """The array over its bytes.

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
