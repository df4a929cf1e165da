"""Ahead-of-time compilation and memory analysis, for absent TPUs too."""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

GIB = 2**30

# Bytes of a device that a program may use, from the compiler's messages when it
# runs out of memory (libtpu 0.0.52); v4 and v7x are per core.
USABLE_BYTES = {
  "v2": 7.48 * GIB,
  "v3": 15.48 * GIB,
  "v4": 15.25 * GIB,
  "v5e": 15.75 * GIB,
  "v5p": 95.73 * GIB,
  "v6e": 31.24 * GIB,
  "tpu7x": 94.74 * GIB,
}

COLLECTIVE = re.compile(
  r"= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute|"
  r"all-to-all)(-start)?\((.*)"
)
CHAIN = re.compile(r'chain_id="(\d+)"')
ARRAY = re.compile(r"(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
BITS = {"pred": 8, "bf16": 16}


class MemoryAnalysis(NamedTuple):
  """Memory and cost of a compiled program, per device.

  Attributes:
    arguments, outputs, temporaries: bytes.
    reused: bytes of donated arguments that outputs take.
    collectives: kind -> (number, bytes of the results); None where the compiler
      cannot print its program.
    seconds: that compiling took.
    flops: as XLA counts them, loop bodies once; 0 where it does not.
    refusal: the compiler's out-of-memory message, or None.
  """

  arguments: int = 0
  outputs: int = 0
  temporaries: int = 0
  reused: int = 0
  collectives: Mapping[str, tuple[int, int]] | None = None
  seconds: float = 0.0
  flops: float = 0.0
  refusal: str | None = None

  @property
  def total(self) -> int:
    """Peak bytes."""
    return self.arguments + self.outputs - self.reused + self.temporaries


def topology_devices(topology: str, slices: int = 1) -> Sequence[Any]:
  """The devices of an absent TPU, such as "v5e:4x4", to compile for.

  Args:
    slices: number of such TPUs, connected by the data centre's network.

  Raises:
    ValueError: there is no such TPU, or libtpu is not installed.
  """
  # Compiling needs neither the lock of a local TPU nor its metadata server.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  from jax.experimental import topologies

  more = {"num_slices": slices} if slices > 1 else {}
  try:
    found = topologies.get_topology_desc(topology, platform="tpu", **more)
  except Exception as error:  # of XLA, of many types
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    raise ValueError(
      f"no topology {topology!r} (x {slices} slices): {first[:200]}; names are "
      "such as v5e:4x4, v5p:2x2x2, v6e:8x8, and libtpu must be installed (pip "
      "install libtpu)"
    ) from error
  return found.devices


def usable_bytes(topology: str | None) -> float | None:
  """Bytes of a topology's device that a program may use; None if unknown."""
  return USABLE_BYTES.get(topology.partition(":")[0]) if topology else None


def memory_analysis(
  function: Callable, args: Sequence[Any], **options: Any
) -> MemoryAnalysis:
  """Compiles a function for abstract arguments; nothing is allocated.

  Args:
    args: trees of `ShapeDtypeStruct` with shardings.
    options: of `jax.jit`.
  """
  begun = time.monotonic()
  try:
    with _quiet():
      compiled = jax.jit(function, **options).lower(*args).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    text = " ".join(str(error).split())
    found = re.search(r"Ran out of memory.*?\)|[^.]*exceed[^.]*\.\d+\w*", text)
    refusal = found.group(0) if found else text[:200]
    return MemoryAnalysis(seconds=time.monotonic() - begun, refusal=refusal)
  seconds, memory = time.monotonic() - begun, compiled.memory_analysis()
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # libtpu cannot print some programs
    text = None
  return MemoryAnalysis(
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.alias_size_in_bytes,
    None if text is None else count_collectives(text),
    seconds,
    float((compiled.cost_analysis() or {}).get("flops", 0.0)),
  )


def count_collectives(text: str) -> dict[str, tuple[int, int]]:
  """Kind -> (number, bytes of the results per device) of compiled HLO.

  A collective in a loop counts once. So does one that a TPU divides into parts
  between other work; the parts have the same chain_id.
  """
  found: dict[str, tuple[int, int]] = {}
  chains = set()
  for results, kind, is_async, rest in COLLECTIVE.findall(text):
    chain = CHAIN.search(rest)
    if chain is not None and chain[1] in chains:
      continue
    chains |= {chain[1]} if chain is not None else set()
    sizes = [_bytes(*array) for array in ARRAY.findall(results) if array[1]]
    if is_async and kind in ("all-gather", "collective-permute"):
      sizes = sizes[len(sizes) // 2 :]  # after the operands
    count, size = found.get(kind, (0, 0))
    found[kind] = (count + 1, size + sum(sizes))
  return found


def _bytes(dtype: str, shape: str) -> int:
  bits = BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
  return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses what the compiler writes to stderr when memory is short."""
  saved = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
