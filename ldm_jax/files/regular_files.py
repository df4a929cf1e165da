"""Opens files that a user names; refuses what could be waited for for ever.

Opening a named pipe waits for its other end, and a device may never end.
"""

import errno
import os
import stat
from typing import BinaryIO

KINDS = {
  stat.S_IFIFO: "a named pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike) -> BinaryIO:
  """A regular file, open for reading bytes; links to one are followed.

  Raises:
    OSError: it cannot be opened, or is a pipe, a socket, a device or a folder.
  """
  check_regular(path)  # opening a device may have effects
  # What has become a pipe since is opened without waiting, and refused.
  no_wait = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
  number = os.open(path, os.O_RDONLY | no_wait)
  try:
    _check_mode(os.fstat(number).st_mode, path)
    return os.fdopen(number, "rb")
  except BaseException:
    os.close(number)
    raise


def read_regular(path: str | os.PathLike) -> bytes:
  """The content of a regular file; raises as `open_regular`."""
  with open_regular(path) as file:
    return file.read()


def check_regular(path: str | os.PathLike) -> None:
  """Raises OSError if a path is no regular file, nor a link to one.

  Paths with :// are those of storage buckets, which have files alone.
  """
  if "://" not in os.fspath(path):
    _check_mode(os.stat(path).st_mode, path)


def _check_mode(mode: int, path: str | os.PathLike) -> None:
  if stat.S_ISREG(mode):
    return
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(
      errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path)
    )
  kind = KINDS.get(stat.S_IFMT(mode), "no file")
  reason = f"it is {kind}; a regular file is needed"
  raise OSError(errno.EINVAL, reason, os.fspath(path))
