"""What a process has freed does not stay in it."""

import ctypes
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.runtime import stored_programs
from ldm_jax.runtime.freed_memory import return_freed_memory

STATUS = pathlib.Path("/proc/self/status")
BLOCK = 2**16  # bytes: below the size from which glibc maps each block


def resident_bytes():
  (found,) = re.findall(r"VmRSS:\s+(\d+) kB", STATUS.read_text())
  return 1024 * int(found)


@pytest.mark.skipif(
  not STATUS.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
  reason="glibc on Linux alone",
)
def test_freed_blocks_below_a_held_one_are_returned():
  c = ctypes.CDLL(None)
  c.malloc.restype = ctypes.c_void_p
  c.free.argtypes = [ctypes.c_void_p]
  blocks = [c.malloc(ctypes.c_size_t(BLOCK)) for _ in range(1000)]
  for block in blocks:
    ctypes.memset(block, 1, BLOCK)
  *freed, held = blocks
  for block in freed:
    c.free(block)
  before = resident_bytes()
  return_freed_memory()
  assert before - resident_bytes() > 500 * BLOCK
  c.free(held)


def test_a_program_returns_it_once_it_is_found(monkeypatch, tmp_path):
  calls = []
  monkeypatch.delenv(stored_programs.VARIABLE, raising=False)
  monkeypatch.setattr(
    stored_programs, "return_freed_memory", lambda: calls.append(1)
  )
  monkeypatch.setattr(stored_programs._Store, "files", None)
  assert stored_programs.store_programs(tmp_path, 2**30)
  program = stored_programs.StoredProgram(jax.jit(jnp.sin), ("sine",))
  for _ in range(2):
    program(jnp.ones(3))
  assert calls == [1]
