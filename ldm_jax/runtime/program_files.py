"""Files of compiled programs, in a folder that only its user can write."""

import contextlib
import hashlib
import os
import pathlib
import stat

from ldm_jax.files.atomic_writes import replace_file

DIGEST = hashlib.sha256().digest_size  # bytes before the content
OTHERS = stat.S_IWGRP | stat.S_IWOTH


class ProgramFiles:
  """Named contents with their digests; those used last are kept.

  Reading a program runs what it holds. So the folder and its files must be the
  user's, and writable by nobody else.
  """

  def __init__(self, folder: pathlib.Path, most_bytes: int):
    """Makes the folder.

    Args:
      most_bytes: of all contents.

    Raises:
      OSError: it cannot be made, or others may write it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(os.lstat(folder), stat.S_ISDIR, folder)
    self.folder, self._most_bytes = folder, most_bytes

  def read(self, name: str) -> bytes | None:
    """The content, or None if there is none.

    Raises:
      OSError: others may write it, or it is damaged.
    """
    path = self.folder / name
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
      number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
      return None
    with os.fdopen(number, "rb") as file:
      _check_own(os.fstat(number), stat.S_ISREG, path)
      digest, content = file.read(DIGEST), file.read()
    if hashlib.sha256(content).digest() != digest:
      raise OSError(f"{path} is damaged")
    with contextlib.suppress(OSError):
      os.utime(path)
    return content

  def write(self, name: str, content: bytes) -> None:
    """Stores a content, in place of one of this name.

    Raises:
      OSError: it cannot be written.
    """
    if len(content) > self._most_bytes:
      return
    path = self.folder / name
    with replace_file(path) as file:
      os.fchmod(file.fileno(), 0o600)
      file.write(hashlib.sha256(content).digest())
      file.write(content)
    self._remove_oldest()

  def _remove_oldest(self) -> None:
    """Removes what was used longest ago, down to the most bytes."""
    found = []
    for entry in os.scandir(self.folder):
      with contextlib.suppress(FileNotFoundError):  # another process
        about = entry.stat(follow_symlinks=False)
        found.append((about.st_mtime_ns, about.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
      if total <= self._most_bytes:
        return
      with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
      total -= size


def _check_own(about: os.stat_result, is_kind, path: pathlib.Path) -> None:
  """Raises PermissionError if others may write what is at `path`."""
  if (
    not is_kind(about.st_mode)
    or about.st_uid != os.geteuid()
    or about.st_mode & OTHERS
  ):
    raise PermissionError(
      f"{path} is not used: it must be yours, and writable by nobody else"
    )
