"""What a program will need of a machine that is not here."""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

GIB = 2**30

# Bytes a program may use of a device, as XLA's own refusals for it say (libtpu
# 0.0.52): v4 and v7x are counted per core.
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
  """What a compiled program needs, of every device.

  Attributes:
    arguments, outputs, temporaries, reused: bytes; what is reused of the
      arguments for the outputs counts once.
    collectives: kind -> how many, and bytes of their results; None where the
      compiler cannot show its program.
    seconds: that compiling took.
    flops: that XLA counts in the program of one device, loops once; 0 where it
      does not say.
    refusal: why the compiler gave up, or None.
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
    """Bytes at once, at most."""
    return self.arguments + self.outputs - self.reused + self.temporaries


def topology_devices(topology: str, slices: int = 1) -> Sequence[Any]:
  """The devices of a TPU that is not here, such as "v5e:4x4".

  Raises:
    ValueError: there is no such TPU, or libtpu is not installed.
  """
  # Compiling needs no lock on a TPU that is not there, nor its metadata.
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
  """Bytes of a device that a program may use, where known."""
  return USABLE_BYTES.get(topology.partition(":")[0]) if topology else None


def memory_analysis(
  function: Callable, args: Sequence[Any], **options: Any
) -> MemoryAnalysis:
  """Compiles a function of arrays that are only described.

  Args:
    args: trees of `ShapeDtypeStruct` with shardings.
    options: of `jax.jit`.
  """
  begun = time.monotonic()
  try:
    with _quiet():
      made = jax.jit(function, **options).lower(*args).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    said = " ".join(str(error).split())
    found = re.search(r"Ran out of memory.*?\)|[^.]*exceed[^.]*\.\d+\w*", said)
    refusal = found.group(0) if found else said[:200]
    return MemoryAnalysis(seconds=time.monotonic() - begun, refusal=refusal)
  seconds, memory = time.monotonic() - begun, made.memory_analysis()
  try:
    text = made.as_text()
  except jax.errors.JaxRuntimeError:  # of libtpu, for some programs
    text = None
  return MemoryAnalysis(
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.alias_size_in_bytes,
    None if text is None else count_collectives(text),
    seconds,
    float((made.cost_analysis() or {}).get("flops", 0.0)),
  )


def count_collectives(text: str) -> dict[str, tuple[int, int]]:
  """Kind -> how many there are in a compiled program, and their bytes.

  Bytes are those of the results on one device. What stands in a loop counts
  once, and so does what a TPU does in pieces between other work: the pieces
  are of one chain.
  """
  found: dict[str, tuple[int, int]] = {}
  chains = set()
  for results, kind, is_begun, rest in COLLECTIVE.findall(text):
    chain = CHAIN.search(rest)
    if chain is not None and chain[1] in chains:
      continue
    chains |= {chain[1]} if chain is not None else set()
    sizes = [_bytes(*array) for array in ARRAY.findall(results) if array[1]]
    if is_begun and kind in ("all-gather", "collective-permute"):
      sizes = sizes[len(sizes) // 2 :]  # behind the operands
    count, size = found.get(kind, (0, 0))
    found[kind] = (count + 1, size + sum(sizes))
  return found


def _bytes(dtype: str, shape: str) -> int:
  bits = BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
  return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the compiler's own account of memory it lacks, on stderr."""
  saved = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
