"""One writer per output, also of programs of several processes."""

import contextlib
from collections.abc import Callable, Iterator

from ldm_jax.files.file_lock import (
  Holder,
  OutputLocked,
  lock_folder,
  lock_output,
)
from ldm_jax.runtime.devices import processes


def folder_lock(
  folder: str,
) -> contextlib.AbstractContextManager[Holder | None]:
  """`lock_folder` for this process, or for the first of several.

  Raises:
    OutputLocked: another program holds it; raised on every process.
  """
  return _held_by_first(lock_folder, folder)


def output_lock(path: str) -> contextlib.AbstractContextManager[None]:
  """`lock_output` for this process, or for the first of several.

  Raises:
    OutputLocked: another program holds it; raised on every process.
  """
  return _held_by_first(lock_output, path)


@contextlib.contextmanager
def _held_by_first(lock: Callable, path: str) -> Iterator[Holder | None]:
  with contextlib.ExitStack() as held:
    previous = refusal = None
    if processes.is_first():
      try:
        previous = held.enter_context(lock(path))
      except OutputLocked as error:
        refusal = error
    if not processes.broadcast(refusal is None):
      raise refusal or OutputLocked(f"{path} is held by another process")
    yield previous
