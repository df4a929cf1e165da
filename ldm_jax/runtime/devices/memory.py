"""Whether something can fit, before any of it is there."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax

from ldm_jax.errors import TooLarge
from ldm_jax.runtime.monitoring.flops import equations

HEAVY = ("dot_general", "conv_general_dilated")  # what no compiler fuses away


def available_bytes() -> int | None:
  """Bytes that a device can still give; None where nobody says.

  CPU devices share what the machine can still give.
  """
  device = jax.local_devices()[0]
  told = device.memory_stats() or {}
  if "bytes_limit" in told:
    return told["bytes_limit"] - told.get("bytes_in_use", 0)
  if device.platform != "cpu" or not os.path.exists("/proc/meminfo"):
    return None
  with open("/proc/meminfo") as file:
    lines = dict(line.split(":", 1) for line in file)
  free = int(lines["MemAvailable"].split()[0]) * 1024
  return free // jax.local_device_count()


def minimum_bytes(function: Callable, *args: Any) -> int:
  """Bytes that a program needs at least: those of its largest matrix product
  or convolution, with what it reads and writes.

  Args:
    args: of `function`, arrays or their shapes; nothing is computed.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  sizes = [
    sum(_bytes(var.aval) for var in (*equation.invars, *equation.outvars))
    for equation in equations(jaxpr)
    if equation.primitive.name in HEAVY
  ]
  return max(sizes, default=0)


def bytes_per_device(shapes: Any, places: Any) -> int:
  """Bytes of a tree's share of one device."""
  shares = jax.tree.map(
    lambda leaf, place: (
      math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    ),
    shapes,
    places,
  )
  return sum(jax.tree.leaves(shares))


def check_fits(what: str, needed: int, advice: str) -> None:
  """Raises TooLarge if a device cannot give so many bytes."""
  there = available_bytes()
  if there is not None and needed > there:
    raise TooLarge(
      f"{what} needs {needed / 2**30:.1f} GiB of a device, which has "
      f"{there / 2**30:.1f} GiB; try {advice}"
    )


def _bytes(aval: Any) -> int:
  return math.prod(aval.shape) * aval.dtype.itemsize
