"""Executables on disk, so that a later process traces and compiles nothing.

JAX's compilation cache finds a program by its text, for which it is traced and
lowered anew in every process. Here it is found by what its text depends on:
the code of this package and of the libraries, settings of jax, devices, the
values that it was built of, and the shapes of its arguments.

A program is stored under the digest of its text, and what it depends on leads
to that digest; so code that changes but gives the same program costs a trace
and no compilation.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import pickle
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from ldm_jax.runtime.freed_memory import return_freed_memory
from ldm_jax.runtime.program_files import ProgramFiles
from ldm_jax.runtime.program_identity import (
  Unknown,
  describe,
  describe_tree,
  environment,
  settings,
  source_digest,
)

logger = logging.getLogger(__name__)

VARIABLE = "LDM_JAX_STORED_PROGRAMS"  # of the environment: 0 stores none
UNSUPPORTED = b""  # in place of a digest: it cannot be stored


class _Store:
  """Where this process keeps programs; nowhere at first."""

  files: ProgramFiles | None = None
  lock = (
    threading.Lock()
  )  # of the setting that `_without_compilation_cache` has


def store_programs(folder: pathlib.Path, most_bytes: int) -> bool:
  """Stores programs in `folder` from now on; returns whether it can.

  Not where the environment's LDM_JAX_STORED_PROGRAMS is 0, nor in a folder that
  others can write: reading a program runs what it holds.
  """
  _Store.files = None
  if os.environ.get(VARIABLE) == "0" or not hasattr(os, "geteuid"):
    return False
  try:
    _Store.files = ProgramFiles(folder, most_bytes)
  except OSError as error:
    logger.debug(f"executables are not stored: {error}")
  return _Store.files is not None


class StoredProgram:
  """A jitted function whose executables are stored.

  Called as the function is. It calls the function itself where nothing is
  stored: in a job of several processes, under another trace, or where the
  effect of an argument on the program is not known.
  """

  def __init__(
    self,
    jitted: Any,
    parts: tuple[Any, ...],
    context: Callable[[], Hashable] = lambda: None,
  ):
    """Reads nothing yet.

    Args:
      jitted: the result of `jax.jit`; keyword arguments are static.
      parts: its name, and all values that it was built of.
      context: what else its trace depends on when it is called.
    """
    self._jitted, self._parts, self._context = jitted, parts, context
    self._programs: dict[Hashable, Callable] = {}
    self._is_jitted = False  # whether jax has executables of it

  def __call__(self, *args: Any, **static: Any) -> Any:
    leaves, form = jax.tree.flatten(args)
    if (
      _Store.files is None
      or jax.process_count() > 1
      or jax.config.jax_disable_jit
      or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    ):
      return self._jit(*args, **static)
    context = self._context(), settings(), tuple(sorted(static.items()))
    key = form, tuple(map(_signature, leaves)), context
    program = self._programs.get(key)
    if program is None:
      program = self._find(_Store.files, key, args, static)
      self._programs[key] = program
      return_freed_memory()
    return program(*args)

  def _jit(self, *args: Any, **static: Any) -> Any:
    """The function itself, which jax compiles or reads from its own cache."""
    self._is_jitted = True
    return self._jitted(*args, **static)

  def _find(
    self, files: ProgramFiles, key: tuple, args: tuple, static: dict[str, Any]
  ) -> Callable:
    """The program for these arguments, read or compiled and stored."""
    plain = functools.partial(self._jit, **static)
    try:
      form, leaves, context = key
      own = describe((self._parts, context))
      call = describe_tree(form), describe(leaves)
      link = _digest(source_digest(), own, *call, environment())
    except Unknown as error:
      logger.debug(f"{self._parts[0]} is not stored: it depends on {error}")
      return plain
    devices = _devices(jax.tree.leaves(args))
    digest = _read(files, link)
    if digest == UNSUPPORTED:
      return plain
    if digest is not None:
      program = self._load(files, digest.decode("ascii", "replace"), devices)
      if program is not None:
        return program
    if self._is_jitted:  # see `_without_compilation_cache`
      return plain
    lowered = self._jitted.lower(*args, **static)
    digest = _digest(_text(lowered), own, environment())
    program = self._load(files, digest, devices)
    if program is None:
      program = _compile_and_store(files, digest, lowered)
    _write(files, link, digest.encode() if program else UNSUPPORTED)
    return program or plain

  def _load(
    self, files: ProgramFiles, digest: str, devices: list[jax.Device]
  ) -> Callable | None:
    """The stored program, or None."""
    content = _read(files, digest)
    if content is None:
      return None
    try:
      load = serialize_executable.deserialize_and_load
      return load(*pickle.loads(content), execution_devices=devices)
    except Exception as error:  # of jax, XLA or pickle, of many types
      logger.debug(f"{self._parts[0]} cannot be loaded: {error}")
      return None


def stored_value(parts: tuple[Any, ...], build: Callable[[], Any]) -> Any:
  """`build()`, or what it returned in an earlier process.

  Args:
    parts: a name, and all values on which the result depends.
    build: returns numbers, or shapes in a form that can be pickled.
  """
  files = _Store.files
  if files is None:
    return build()
  try:
    own = describe((parts, settings()))
    name = _digest(source_digest(), own, environment())
  except Unknown as error:
    logger.debug(f"{parts[0]} is not stored: it depends on {error}")
    return build()
  content = _read(files, name)
  if content is not None:
    try:
      return pickle.loads(content)
    except Exception as error:  # of many types
      logger.debug(f"{parts[0]} cannot be loaded: {error}")
  value = build()
  try:
    _write(files, name, pickle.dumps(value))
  except (pickle.PicklingError, TypeError, AttributeError) as error:
    logger.debug(f"{parts[0]} cannot be stored: {error}")
  return value


def _signature(leaf: Any) -> tuple:
  """What a program's text depends on in an argument.

  Not jax's type of the argument itself: those of a loaded program's results
  are equal to no other (jax 0.12).
  """
  kind, sharding = jax.typeof(leaf), None
  dtype = kind.dtype if isinstance(kind.dtype, np.dtype) else str(kind.dtype)
  if isinstance(leaf, jax.Array) and leaf.committed:
    sharding = leaf.sharding
  return kind.shape, dtype, kind.weak_type, sharding


def _devices(leaves: list[Any]) -> list[jax.Device]:
  """The devices of a program with these arguments, in the order of its mesh."""
  for leaf in leaves:
    if isinstance(leaf, jax.Array) and leaf.committed:
      if isinstance(leaf.sharding, jax.sharding.NamedSharding):
        return list(leaf.sharding.mesh.devices.flat)
      return list(leaf.sharding.device_set)
  return [jax.numpy.zeros(()).device]


def _text(lowered: Any) -> str:
  """A program's text, and how it is called."""
  forms = map(describe_tree, (lowered.in_tree, lowered.out_tree))
  called = f"{lowered.args_info}{lowered.out_info}"
  return "\n".join([lowered.as_text(), *forms, called])


def _compile_and_store(
  files: ProgramFiles, digest: str, lowered: Any
) -> Callable | None:
  """The compiled program, or None if it cannot be stored."""
  with _without_compilation_cache():
    compiled = lowered.compile()
  try:
    content = pickle.dumps(serialize_executable.serialize(compiled))
  except Exception as error:  # of jax, XLA or pickle, of many types
    logger.debug(f"a program cannot be stored: {error}")
    return None
  _write(files, digest, content)
  return compiled


@contextlib.contextmanager
def _without_compilation_cache() -> Iterator[None]:
  """Compiles anew what JAX's cache may have.

  On CPUs an executable that was read from there, or by an earlier call of the
  jitted function, cannot be stored again: it does not hold its own code
  (jaxlib 0.10 to 0.12).
  """
  with _Store.lock:
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
      yield
    finally:
      jax.config.update("jax_enable_compilation_cache", before)
      compilation_cache.reset_cache()


def _read(files: ProgramFiles, name: str) -> bytes | None:
  try:
    return files.read(name)
  except (OSError, ValueError) as error:  # or no name of a file
    logger.debug(f"a stored program is not used: {error}")
    return None


def _write(files: ProgramFiles, name: str, content: bytes) -> None:
  try:
    files.write(name, content)
  except OSError as error:
    logger.debug(f"a program is not stored: {error}")


def _digest(*texts: str) -> str:
  lengths = "".join(f"{len(text)}\n" for text in texts)
  return hashlib.sha256((lengths + "".join(texts)).encode()).hexdigest()
