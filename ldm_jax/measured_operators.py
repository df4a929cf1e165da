"""The operators of a CPU by what was measured on it."""

import os
import time

import jax
import jax.numpy as jnp

from ldm_jax.nn.operators import choice
from ldm_jax.runtime.machine_table import measured_number

ROUNDS = 7
SHAPE = (2048, 640)  # of the pixels; the kernel is square


def use_measured_operators(folder: str | os.PathLike | None) -> None:
  """Chooses bfloat16's operators on a CPU by a table in this folder.

  The table (`bfloat16_gain-*.json`, of each processor and version) has the gain
  of products in bfloat16 over products that are cast to float32. It is measured
  when the first U-Net, autoencoder or CLIP in bfloat16 is traced, and kept, so
  that a request is computed by the same operators again.
  Processes of one job, which must compile one program, and processes without a
  folder assume that bfloat16 is faster.

  Args:
    folder: as `use_compilation_cache` returns it; None or a bucket keeps none.
  """
  if folder is None or "://" in os.fspath(folder):
    choice.set_bfloat16_gain(None)
    return

  def gain() -> float:
    if jax.process_count() > 1:
      return choice.ASSUMED_GAIN
    return measured_number(folder, "bfloat16_gain", bfloat16_gain)

  choice.set_bfloat16_gain(gain)


def bfloat16_gain() -> float:
  """The time of a product that is cast to float32, to that in bfloat16.

  Of a matrix of bfloat16 pixels with a kernel, to bfloat16, on the default
  device; the least of seven rounds in turns, some .3 s. Above 1 bfloat16 is
  faster, as with AMX or AVX512-BF16 instructions that XLA uses.
  """
  with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
    x = jnp.full(SHAPE, 0.5, jnp.bfloat16)
    kernel = jnp.full((SHAPE[1], SHAPE[1]), 0.25, jnp.bfloat16)
    own, cast = (jax.jit(f) for f in (jnp.matmul, _product_in_float32))
    seconds = {own: [], cast: []}
    for _ in range(1 + ROUNDS):
      for function, found in seconds.items():
        begin = time.perf_counter()
        function(x, kernel).block_until_ready()
        found.append(time.perf_counter() - begin)
  # The first round compiles.
  return min(seconds[cast][1:]) / min(seconds[own][1:])


def _product_in_float32(x: jax.Array, kernel: jax.Array) -> jax.Array:
  exact = x.astype(jnp.float32) @ kernel.astype(jnp.float32)
  return exact.astype(x.dtype)
