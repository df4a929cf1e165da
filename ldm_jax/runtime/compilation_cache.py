"""Compiled programs are kept on disk, in the user's cache folder."""

import logging
import os
import pathlib

import jax

from ldm_jax.runtime.program_identity import processor
from ldm_jax.runtime.stored_programs import store_programs

logger = logging.getLogger(__name__)

MOST_BYTES = 4 * 2**30  # the entries used last are kept
EXECUTABLES = "executables"  # the subfolder of `stored_programs`


def use_compilation_cache(
  folder: str | os.PathLike | None = None, most_bytes: int = MOST_BYTES
) -> str | None:
  """Keeps compiled programs on disk, so that later processes compile nothing.

  JAX's cache finds a program by its text, the versions of jax and XLA, XLA's
  flags and the devices. The large programs of sampling and training are found
  without their text, see `stored_programs`. A folder that is configured already
  (JAX_COMPILATION_CACHE_DIR, or `jax.config`) stays.

  Args:
    folder: where; `default_folder()` if None.
    most_bytes: of all programs, one half for each of the two; those used
      longest ago are removed.

  Returns:
    The folder, or None where no cache can be written.
  """
  if not jax.config.jax_enable_compilation_cache:
    return None
  if jax.config.jax_compilation_cache_dir:
    configured = jax.config.jax_compilation_cache_dir
    if "://" not in configured:
      store_programs(pathlib.Path(configured) / EXECUTABLES, most_bytes // 2)
    return configured
  path = pathlib.Path(folder or default_folder())
  try:
    path.mkdir(parents=True, exist_ok=True)
    is_writable = os.access(path, os.W_OK | os.X_OK)
  except OSError:
    is_writable = False
  if not is_writable:
    logger.debug(f"programs are not cached: {path} cannot be written")
    return None
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_compilation_cache_max_size", most_bytes // 2)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  store_programs(path / EXECUTABLES, most_bytes // 2)
  logger.debug(f"programs are cached in {path}")
  return str(path)


def default_folder() -> pathlib.Path:
  """$XDG_CACHE_HOME/ldm_jax/programs/CPU, or ~/.cache for $XDG_CACHE_HOME.

  CPU stands for the processor's instruction sets: XLA compiles for those of
  the machine, and a home folder may be shared by several machines.
  """
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(base) / "ldm_jax" / "programs" / processor()
