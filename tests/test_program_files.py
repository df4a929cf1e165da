"""Programs are read only if nobody else can have written them."""

import os

import pytest

from ldm_jax.runtime.program_files import ProgramFiles


@pytest.fixture
def files(tmp_path):
  return ProgramFiles(tmp_path / "programs", 10_000)


def test_contents_are_read_as_written(files):
  assert files.read("a") is None
  files.write("a", b"one")
  files.write("b", b"")
  files.write("a", b"two")
  assert files.read("a") == b"two" and files.read("b") == b""
  assert os.stat(files.folder).st_mode & 0o777 == 0o700
  assert os.stat(files.folder / "a").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_a_damaged_file_is_an_error(files, change):
  files.write("a", b"content")
  path = files.folder / "a"
  stored = path.read_bytes()
  flipped = stored[:-1] + bytes([stored[-1] ^ 1])
  damaged = {"flip": flipped, "cut": stored[:-2], "empty": b""}[change]
  path.write_bytes(damaged)
  with pytest.raises(OSError, match="damaged"):
    files.read("a")


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_not_read(files, mode):
  files.write("a", b"content")
  os.chmod(files.folder / "a", mode)
  with pytest.raises(PermissionError, match="writable by nobody else"):
    files.read("a")


def test_a_link_is_not_followed(files, tmp_path):
  files.write("a", b"content")
  os.link(files.folder / "a", tmp_path / "target")
  (files.folder / "b").symlink_to(tmp_path / "target")
  with pytest.raises(OSError):
    files.read("b")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_is_not_used(tmp_path, mode):
  (tmp_path / "programs").mkdir()
  os.chmod(tmp_path / "programs", mode)
  with pytest.raises(PermissionError, match="writable by nobody else"):
    ProgramFiles(tmp_path / "programs", 1)


def test_of_another_user_nothing_is_read(files, monkeypatch):
  files.write("a", b"content")
  monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
  with pytest.raises(PermissionError):
    files.read("a")
  with pytest.raises(PermissionError):
    ProgramFiles(files.folder, 1)


def test_those_used_last_are_kept(files):
  """Of 10,000 bytes, each with a digest."""
  for age, name in enumerate("abcd"):
    files.write(name, bytes(2000))
    os.utime(files.folder / name, times=(0, 1000 + age))
  assert files.read("a") is not None  # so it is used last
  files.write("e", bytes(4000))
  names = lambda: {path.name for path in files.folder.iterdir()}
  assert names() == {"a", "d", "e"}
  files.write("large", bytes(20_000))
  assert names() == {"a", "d", "e"}
