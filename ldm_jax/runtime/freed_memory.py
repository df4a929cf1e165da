"""Memory that this process has freed, back to the operating system."""

import ctypes


def return_freed_memory() -> None:
  """Returns the free pages of the heap, where the C library is glibc.

  Compiling or reading a program frees hundreds of MB, which glibc keeps in the
  process while XLA allocates a step's arrays elsewhere.
  """
  try:
    trim = ctypes.CDLL(None).malloc_trim
  except (AttributeError, OSError, TypeError):  # another C library
    return
  trim(ctypes.c_size_t(0))
