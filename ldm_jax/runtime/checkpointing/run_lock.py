"""One writer per run folder, by an advisory lock of the operating system.

FOLDER/lock is locked by `filelock` (flock on Unix); FOLDER/lock.json identifies
the holder. The system releases the lock whenever its holder ends, so a killed
process never blocks the next one.

Network file systems: NFS (v4, or v3 with lockd), Lustre (mounted with `flock`)
and GPFS pass the lock on to their server, so it holds between hosts. A mount
that keeps locks local (NFS `nolock`, Lustre `localflock`) excludes processes of
the same host only. Where there are no locks at all (some object-store mounts),
a warning is logged and the run continues without one.
"""

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import filelock

from ldm_jax.errors import ConfigError
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.devices import processes

logger = logging.getLogger(__name__)

NAME = "lock"
# A separate file, because some versions of filelock empty the locked one.
HOLDER = "lock.json"
FIELDS = ("pid", "host", "since")
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLocked(ConfigError):
  """Another process writes to the run folder."""


@contextlib.contextmanager
def run_lock(folder: str) -> Iterator[dict[str, Any] | None]:
  """Holds a run folder for this process, or for the first of several.

  A folder that holds nothing but the lock is removed on exit.

  Yields:
    {"pid", "host", "since"} of a holder that ended without releasing the lock,
    or None.

  Raises:
    RunLocked: another process holds it; raised on every process.
  """
  lock = previous = refusal = None
  if processes.is_first():
    try:
      lock, previous = _acquire(folder)
    except RunLocked as error:
      refusal = error
  if not processes.broadcast(refusal is None):
    raise refusal or RunLocked(f"{folder} is held by another process")
  try:
    yield previous
  finally:
    if processes.is_first():
      _release(folder, lock)


def _acquire(
  folder: str,
) -> tuple[filelock.BaseFileLock | None, dict[str, Any] | None]:
  """The held lock (None where there are no locks), and the last holder."""
  os.makedirs(folder, exist_ok=True)
  holder = os.path.join(folder, HOLDER)
  lock = filelock.FileLock(os.path.join(folder, NAME))
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    who = _read_holder(holder) or dict.fromkeys(FIELDS, "?")
    raise RunLocked(
      f"{folder} is written by process {who['pid']} on {who['host']} since "
      f"{who['since']}; wait for it or stop it, or choose another --workdir"
    ) from None
  except (NotImplementedError, OSError) as error:
    if isinstance(error, OSError) and error.errno not in NO_LOCKS:
      raise
    logger.warning(
      "%s: its file system has no locks; make sure that no other process "
      "writes there",
      folder,
    )
    lock = None
  previous = _read_holder(holder)
  now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
  own = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
  with open(holder, "w") as file:
    json.dump(own, file)
  return lock, previous


def _release(folder: str, lock: filelock.BaseFileLock | None) -> None:
  with contextlib.suppress(OSError):
    os.remove(os.path.join(folder, HOLDER))
  is_unused = os.path.isdir(folder) and set(os.listdir(folder)) <= {NAME}
  if lock is not None:
    lock.release()
  if is_unused:
    with contextlib.suppress(OSError):
      os.remove(os.path.join(folder, NAME))
    with contextlib.suppress(OSError):
      os.rmdir(folder)


def _read_holder(path: str) -> dict[str, Any] | None:
  """What `HOLDER` says; None if it is missing or half written."""
  try:
    found = read_object(path, ConfigError)
  except (OSError, ConfigError):
    return None
  return found if found.keys() >= set(FIELDS) else None
