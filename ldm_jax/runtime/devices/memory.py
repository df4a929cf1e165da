"""Whether a program fits into device memory, before it is compiled."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ldm_jax.errors import TooLarge
from ldm_jax.runtime.monitoring.flops import equations

HEAVY = ("dot_general", "conv_general_dilated")  # no compiler fuses these
LOOPS = ("scan", "while")  # results take their operands' place


def available_bytes() -> int | None:
  """Free bytes of a device; None where they are unknown.

  CPU devices have equal fractions of the machine's free memory.
  """
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  if device.platform != "cpu" or not os.path.exists("/proc/meminfo"):
    return None
  with open("/proc/meminfo") as file:
    lines = dict(line.split(":", 1) for line in file)
  free = int(lines["MemAvailable"].split()[0]) * 1024
  return free // jax.local_device_count()


def minimum_bytes(function: Callable, *args: Any) -> int:
  """A lower bound of the bytes that a program needs.

  Operands and results of its largest matrix product or convolution, or
  operands of its largest loop.

  Args:
    args: of `function`, arrays or their shapes; nothing is computed.
  """
  sizes = [0]
  for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
    if equation.primitive.name in HEAVY:
      sizes.append(_total([*equation.invars, *equation.outvars]))
    elif equation.primitive.name in LOOPS:
      sizes.append(_total(equation.invars))
  return max(sizes)


def bytes_per_device(shapes: Any, shardings: Any) -> int:
  """Bytes of a sharded tree that lie on one device."""
  sizes = jax.tree.map(
    lambda leaf, sharding: (
      math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    ),
    shapes,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def check_fits(what: str, needed: int, advice: str) -> None:
  """Raises TooLarge if a device has fewer free bytes than `needed`."""
  available = available_bytes()
  if available is not None and needed > available:
    raise TooLarge(
      f"{what} needs {needed / 2**30:.1f} GiB of device memory, of which "
      f"{available / 2**30:.1f} GiB are free; try {advice}"
    )


def _total(variables: Sequence[Any]) -> int:
  """Bytes of variables of a jaxpr, each counted once."""
  avals = {id(variable): variable.aval for variable in variables}
  return sum(
    math.prod(aval.shape) * aval.dtype.itemsize for aval in avals.values()
  )
