"""Compiles programs, and measures the memory that they need of a device."""

import logging
from collections.abc import Callable

import jax

from ldm_jax.planning.programs import Program
from ldm_jax.planning.request import LargestBatch
from ldm_jax.runtime.devices import aot, memory
from ldm_jax.runtime.devices.aot import MemoryAnalysis

logger = logging.getLogger(__name__)


def memory_needs(program: Program) -> MemoryAnalysis:
  """Compiles a program; arguments that it does not read are counted too."""
  held = sum(part_sizes(program).values())
  found = aot.memory_analysis(program.function, program.args, **program.options)
  return found._replace(arguments=max(held, found.arguments))


def part_sizes(program: Program) -> dict[str, int]:
  """Bytes of the arguments on each device, by what they are."""
  return {
    name: memory.bytes_per_device(
      tree, jax.tree.map(lambda x: x.sharding, tree)
    )
    for name, tree in program.parts.items()
  }


def largest_batch(
  need: Callable[[int], MemoryAnalysis],
  batch: int,
  unit: int,
  found: MemoryAnalysis,
  limit: float | None,
) -> LargestBatch:
  """Estimates the largest batch that fits, if memory grows linearly with it.

  The line goes through this batch and twice or half of it, whichever XLA
  compiles.

  Args:
    need: compiles for a batch.
    unit: batches are multiples of it.
    found: the needs of `batch`.
    limit: bytes of a device, or None where unknown.
  """
  if limit is None:
    return LargestBatch(None, "unknown memory of the device")
  points = [] if found.refusal else [(batch, found.total)]
  for other in (2 * batch, batch // 2, batch // 4):
    if len(points) == 2 or other % unit or not other:
      continue
    logger.info(f"compiling for a batch of {other} ...")
    made = need(other)
    points += [] if made.refusal else [(other, made.total)]
  if len(points) < 2:
    return LargestBatch(None, "no two batches compile")
  (one, low), (two, high) = sorted(points)
  if high <= low:
    return LargestBatch(None, "memory does not grow")
  estimate = one + (limit - low) * (two - one) / (high - low)
  images = max(0, int(estimate // unit * unit))
  return LargestBatch(images, f"a line through {one} and {two}")
