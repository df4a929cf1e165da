"""Files and folders that appear under their names once they are complete.

What is written is a hidden file or folder next to the target, with a name of
its own (.NAME.RANDOM.part) that no other process has or follows a link to. It
is flushed to the disk and then renamed. If an exception is raised it is
removed; what a killed process leaves is removed by the next holder of the
target's lock, see `file_lock`.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

SUFFIX = ".part"
MAX_NAME = 200  # bytes of NAME that are kept; file systems allow 255 in all
NO_LINKS = (
  errno.EPERM,
  errno.EACCES,
  errno.ENOSYS,
  errno.ENOTSUP,
  errno.EOPNOTSUPP,
  errno.EMLINK,
)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)

Path = str | os.PathLike


@contextlib.contextmanager
def replace_file(path: Path, encoding: str | None = None) -> Iterator[Any]:
  """A file to write that becomes `path`, in place of an earlier one.

  A link of that name is replaced, not followed.

  Args:
    encoding: of a text file; None for bytes.
  """
  with _temporary_file(path, encoding) as (file, part):
    yield file
    _finish(file)
    os.replace(part, path)


@contextlib.contextmanager
def new_file(path: Path, encoding: str | None = None) -> Iterator[Any]:
  """`replace_file` for a name that must not exist.

  Raises:
    FileExistsError: it exists, before the block or after it; nothing is
      overwritten.
  """
  check_absent(path)
  with _temporary_file(path, encoding) as (file, part):
    yield file
    _finish(file)
    _publish(part, path)


def write_under_free_name(
  names: Iterable[Path], write: Callable[[BinaryIO], None]
) -> str:
  """Writes a file once and gives it the first name that does not exist.

  The name is claimed and the content appears in one operation, so processes
  that write at the same time never overwrite each other's files.

  Returns:
    The name.
  """
  names = iter(names)
  path = os.fspath(next(names))
  with _temporary_file(path, None) as (file, part):
    write(file)
    _finish(file)
    while True:
      try:
        _publish(part, path)
      except FileExistsError:
        path = os.fspath(next(names))
      else:
        return path


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[str]:
  """A folder to write into that becomes `path`, which must not hold anything.

  Raises:
    FileExistsError: it exists, before the block or after it, and is more than
      an empty folder; nothing is overwritten.
  """
  path = os.path.abspath(path)
  if os.path.islink(path) or not is_empty_folder(path):
    check_absent(path)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  part = temporary_name(path)
  os.mkdir(part)
  try:
    yield part
    try:
      os.rename(part, path)  # replaces an empty folder only
    except OSError as error:
      if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        raise _exists(path) from None
      raise
  finally:
    shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[str]:
  """The name of an empty file, for a library that writes by name.

  It becomes `path`, in place of an earlier one, when the block ends.
  """
  with _temporary_file(path, None) as (_, part):
    yield part
    with open(part, "rb+") as written:
      _finish(written)
    os.replace(part, path)


def open_append(path: Path) -> BinaryIO:
  """A file to append to, unbuffered; created if it is missing.

  Raises:
    OSError: it is a link, or no regular file.
  """
  return _open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_update(path: Path) -> BinaryIO:
  """An existing file to read and to change; raises as `open_append`."""
  return _open_own(path, os.O_RDWR)


def _open_own(path: Path, flags: int) -> BinaryIO:
  """Opens a file that this package writes itself, so that it is no link."""
  extra = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
  for name in extra:
    flags |= getattr(os, name, 0)
  try:
    number = os.open(path, flags, 0o666)
  except OSError as error:
    if error.errno != errno.ELOOP:
      raise
    reason = "it is a link, which is not followed; remove it"
    raise OSError(error.errno, reason, os.fspath(path)) from None
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
  mode = "r+b" if flags & os.O_RDWR else "ab"
  return os.fdopen(number, mode, buffering=0)


def temporary_name(path: Path) -> str:
  """A hidden name next to `path` that no other process has."""
  folder, name = os.path.split(os.path.normpath(os.fspath(path)))
  token = secrets.token_hex(8)
  return os.path.join(folder, f".{_short(name)}.{token}{SUFFIX}")


def remove_leftovers(path: Path) -> None:
  """Removes what killed processes have left of `path`.

  To be called by the holder of the lock of `path`: what a living process
  writes has such a name too.
  """
  folder, name = os.path.split(os.path.abspath(path))
  _remove_matching(folder, re.escape(_short(name)))


def remove_all_leftovers(folder: Path) -> None:
  """`remove_leftovers` for all names of a folder that is locked."""
  _remove_matching(os.fspath(folder), ".*")


def _remove_matching(folder: str, name: str) -> None:
  pattern = rf"\.{name}\.[0-9a-f]{{16}}{re.escape(SUFFIX)}"
  with contextlib.suppress(OSError):
    for entry in list(os.scandir(folder)):
      if re.fullmatch(pattern, entry.name, re.DOTALL):
        if entry.is_dir(follow_symlinks=False):
          shutil.rmtree(entry.path, ignore_errors=True)
        else:
          os.unlink(entry.path)


def is_empty_folder(path: Path) -> bool:
  """Whether `path` is a folder without anything in it."""
  return os.path.isdir(path) and not os.listdir(path)


def _short(name: str) -> str:
  return name.encode()[:MAX_NAME].decode(errors="ignore")


@contextlib.contextmanager
def _temporary_file(
  path: Path, encoding: str | None
) -> Iterator[tuple[Any, str]]:
  """(file, name); an OSError of the block names `path` instead."""
  part = temporary_name(path)
  flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
  for name in ("O_NOFOLLOW", "O_BINARY"):
    flags |= getattr(os, name, 0)
  mode = "wb" if encoding is None else "w"
  try:
    # The mode that `open` gives, less the user's umask.
    number = os.open(part, flags, 0o666)
    try:
      with os.fdopen(number, mode, encoding=encoding) as file:
        yield file, part
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
  except OSError as error:
    if error.errno is None or error.filename not in (None, part):
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _finish(file: Any) -> None:
  """Flushes a file to the disk, where the file system can."""
  file.flush()
  try:
    os.fsync(file.fileno())
  except OSError as error:
    if error.errno not in NO_SYNC:
      raise


def _publish(part: str, path: Path) -> None:
  """Renames a file to a name that does not exist.

  Raises:
    FileExistsError: it exists.
  """
  try:
    os.link(part, path)
  except FileExistsError:
    raise _exists(path) from None
  except OSError as error:
    if error.errno not in NO_LINKS:
      raise
    # A file system without hard links: the name is claimed by an empty file.
    try:
      os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
      raise _exists(path) from None
    os.replace(part, path)


def check_absent(path: Path) -> None:
  """Raises FileExistsError if anything has this name, also a broken link."""
  if os.path.lexists(path):
    raise _exists(path)


def _exists(path: Path) -> FileExistsError:
  return FileExistsError(f"{os.fspath(path)} exists already; choose another")
