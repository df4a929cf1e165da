"""One writer per output folder, also of programs of several processes."""

import contextlib
from collections.abc import Iterator

from ldm_jax.files.file_lock import Holder, OutputLocked, lock_folder
from ldm_jax.runtime.devices import processes


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[Holder | None]:
  """`lock_folder` for this process, or for the first of several.

  Raises:
    OutputLocked: another program holds it; raised on every process.
  """
  with contextlib.ExitStack() as held:
    previous = refusal = None
    if processes.is_first():
      try:
        previous = held.enter_context(lock_folder(folder))
      except OutputLocked as error:
        refusal = error
    if not processes.broadcast(refusal is None):
      raise refusal or OutputLocked(f"{folder} is held by another process")
    yield previous
