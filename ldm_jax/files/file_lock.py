"""One writer per output, by an advisory lock of the operating system.

A lock file is locked by `filelock` (flock on Unix); a second file, with .json
added, identifies the holder. The system releases the lock whenever its holder
ends, so a killed process never blocks the next one.

Network file systems: NFS (v4, or v3 with lockd), Lustre (mounted with `flock`)
and GPFS pass the lock on to their server, so it holds between hosts. A mount
that keeps locks local (NFS `nolock`, Lustre `localflock`) excludes processes of
the same host only. Where there are no locks at all (some object-store mounts),
a warning is logged and the output is written without one.
"""

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from typing import Any

import filelock

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import (
  remove_all_leftovers,
  remove_leftovers,
  replace_file,
)
from ldm_jax.files.strict_json import read_object

logger = logging.getLogger(__name__)

_HELD = threading.local()  # paths of `lock_output`

NAME = "lock"  # in a folder that is locked
# A separate file, because some versions of filelock empty the locked one.
HOLDER = ".json"
FIELDS = ("pid", "host", "since")
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

Holder = dict[str, Any]


class OutputLocked(ConfigError):
  """Another process writes to the output."""


@contextlib.contextmanager
def lock_folder(folder: str) -> Iterator[Holder | None]:
  """Holds a folder that is written in place, by FOLDER/lock.

  What killed processes have left in it is removed. A folder that holds nothing
  but the lock is removed on exit.

  Yields:
    {"pid", "host", "since"} of a holder that ended without releasing the lock,
    or None.

  Raises:
    OutputLocked: another process holds it.
  """
  if os.path.lexists(folder) and not os.path.isdir(folder):
    raise ConfigError(f"{folder} is a file, expected a folder; choose another")
  os.makedirs(folder, exist_ok=True)
  file = os.path.join(folder, NAME)
  with _locked(file, folder) as previous:
    try:
      remove_all_leftovers(folder)
      yield previous
    finally:
      _remove_held(file)
      with contextlib.suppress(OSError):
        os.rmdir(folder)


def is_unused(folder: str) -> bool:
  """Whether there is no such folder, or nothing but its lock in it."""
  own = {NAME, NAME + HOLDER}
  return not os.path.exists(folder) or set(os.listdir(folder)) <= own


@contextlib.contextmanager
def lock_output(path: str | os.PathLike) -> Iterator[None]:
  """Holds a file, or a folder that is written as a whole, by .NAME.lock.

  What killed processes have left of it is removed. A thread may hold it twice.

  Raises:
    OutputLocked: another process or thread holds it.
  """
  path = os.path.abspath(path)
  held = vars(_HELD).setdefault("paths", set())
  if path in held:
    yield
    return
  with _lock_next_to(path):
    held.add(path)
    try:
      yield
    finally:
      held.discard(path)


@contextlib.contextmanager
def _lock_next_to(path: str) -> Iterator[None]:
  folder, name = os.path.split(path)
  is_new = not os.path.isdir(folder)
  os.makedirs(folder, exist_ok=True)
  file = os.path.join(folder, f".{name}.{NAME}")
  with _locked(file, path):
    try:
      remove_leftovers(path)
      yield
    finally:
      _remove_held(file)
      if is_new:
        with contextlib.suppress(OSError):
          os.rmdir(folder)  # nothing was written there


@contextlib.contextmanager
def _locked(file: str, output: str) -> Iterator[Holder | None]:
  lock = _acquire(file, output)
  try:
    previous = _read_holder(file + HOLDER)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    own = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    with replace_file(file + HOLDER, "utf-8") as holder:
      json.dump(own, holder)
    yield previous
  finally:
    if lock is not None:
      lock.release()


def _acquire(file: str, output: str) -> filelock.BaseFileLock | None:
  """The held lock; None where the file system has none."""
  _check_own(file)
  lock = filelock.FileLock(file)
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    who = _read_holder(file + HOLDER) or dict.fromkeys(FIELDS, "?")
    raise OutputLocked(
      f"{output} is written by process {who['pid']} on {who['host']} since "
      f"{who['since']}; wait for it or stop it, or choose another output"
    ) from None
  except (NotImplementedError, OSError) as error:
    if isinstance(error, OSError) and error.errno not in NO_LOCKS:
      raise
    logger.warning(
      "%s: its file system has no locks; make sure that no other process "
      "writes there",
      output,
    )
    return None
  return lock


def _check_own(file: str) -> None:
  """Raises ConfigError if a lock file is a link or no regular file."""
  try:
    mode = os.lstat(file).st_mode
  except FileNotFoundError:
    return
  if not stat.S_ISREG(mode):
    kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
    raise ConfigError(
      f"{file} is {kind}, and would be written to as a lock; remove it"
    )


def _remove_held(file: str) -> None:
  """Removes a lock that is held: who has just opened it sees that it is gone,
  and tries again.
  """
  for path in (file + HOLDER, file):
    with contextlib.suppress(OSError):
      os.remove(path)


def _read_holder(path: str) -> Holder | None:
  """What a holder wrote; None if it is missing, half written or no file."""
  try:
    found = read_object(path, ConfigError)
  except (OSError, ConfigError):
    return None
  return found if found.keys() >= set(FIELDS) else None
