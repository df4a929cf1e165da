"""One writer per run folder."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, TextIO

from ldm_jax.runtime.devices import processes

NAME = "lock"


class RunLocked(ValueError):
  """Somebody else writes there."""


@contextlib.contextmanager
def run_lock(folder: str) -> Iterator[dict[str, Any] | None]:
  """Holds a folder for this process, or for the first of several.

  The kernel lets the lock go when its holder ends, however it ends, so one that
  is left behind never bars the way. Yields who left it, if anybody did.

  Raises:
    RunLocked: another process has it; on every process.
  """
  file = before = refusal = None
  if processes.is_first():
    try:
      file, before = _taken(folder)
    except Held as error:
      refusal = error
  if not processes.broadcast(refusal is None):
    raise refusal or RunLocked(f"{folder} is held by another process")
  try:
    yield before
  finally:
    if file is not None:
      file.truncate(0)
      file.close()
      if os.listdir(folder) == [NAME]:  # nothing came of it
        os.remove(file.name)
        os.rmdir(folder)


def _taken(folder: str) -> tuple[TextIO, dict[str, Any] | None]:
  """The file that is held as long as it is open, and who left it behind."""
  os.makedirs(folder, exist_ok=True)
  file = open(os.path.join(folder, NAME), "a+")  # noqa: SIM115, until the end
  before = _holder(file)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    who = before or dict.fromkeys(("pid", "host", "since"), "?")
    raise RunLocked(
      f"{folder} is written by process {who['pid']} on {who['host']} since "
      f"{who['since']}; wait for it or stop it, or choose another --workdir"
    ) from None
  file.truncate(0)
  now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
  mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
  file.write(json.dumps(mine))
  file.flush()
  return file, before


def _holder(file: TextIO) -> dict[str, Any] | None:
  file.seek(0)
  try:
    found = json.loads(file.read())
  except ValueError:
    return None
  whole = isinstance(found, dict) and found.keys() >= {"pid", "host", "since"}
  return found if whole else None
