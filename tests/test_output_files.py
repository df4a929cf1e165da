"""Files and folders that appear complete, under one writer's lock."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import (
  new_file,
  new_folder,
  open_append,
  open_update,
  replace_file,
  temporary_file,
  temporary_name,
  write_under_free_name,
)
from ldm_jax.files.file_lock import OutputLocked, lock_folder, lock_output
from ldm_jax.files.regular_files import open_regular, read_regular
from ldm_jax.sampling import outputs

PROLOGUE = """
import os, sys, time
from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import *
from ldm_jax.files.file_lock import *
path = sys.argv[1]
"""


def start(code, *arguments):
  return subprocess.Popen(
    [sys.executable, "-c", PROLOGUE + code, *map(str, arguments)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
  )


def listing(folder):
  return sorted(entry.name for entry in folder.iterdir())


def fails(block):
  with pytest.raises(ZeroDivisionError), block as file:
    if hasattr(file, "write"):
      file.write(b"half")
    raise ZeroDivisionError


def test_a_file_appears_complete_or_not_at_all(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"earlier")
  (tmp_path / "a.part").write_bytes(b"the user's own")
  for write in replace_file, temporary_file:
    fails(write(path))
    assert path.read_bytes() == b"earlier"
  fails(new_file(tmp_path / "b"))
  fails(new_folder(tmp_path / "c"))
  with replace_file(path) as file:
    file.write(b"later")
    assert path.read_bytes() == b"earlier"
  with new_file(tmp_path / "b", "utf-8") as file:
    file.write("\u00e4")
    assert not (tmp_path / "b").exists()
  with new_folder(tmp_path / "c") as part:
    (pathlib.Path(part) / "x").write_bytes(b"x")
    assert not (tmp_path / "c").exists()
  assert path.read_bytes() == b"later"
  assert (tmp_path / "b").read_text("utf-8") == "\u00e4"
  assert (tmp_path / "a.part").read_bytes() == b"the user's own"
  assert listing(tmp_path) == ["a", "a.part", "b", "c"]
  umask = os.umask(0)
  os.umask(umask)
  assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_new_files_and_folders_overwrite_nothing(tmp_path):
  (tmp_path / "a").write_bytes(b"a")
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "x").write_bytes(b"x")
  (tmp_path / "broken").symlink_to(tmp_path / "nothing")
  for name in ("a", "folder", "broken"):
    for write in new_file, new_folder:
      with (
        pytest.raises(FileExistsError, match=f"{name} exists already; choose"),
        write(tmp_path / name),
      ):
        raise AssertionError
  # What appears during the writing is kept, too.
  with pytest.raises(FileExistsError), new_file(tmp_path / "late") as file:
    file.write(b"ours")
    (tmp_path / "late").write_bytes(b"theirs")
  with pytest.raises(FileExistsError), new_folder(tmp_path / "late2"):
    (tmp_path / "late2").mkdir()
    (tmp_path / "late2" / "x").write_bytes(b"theirs")
  assert (tmp_path / "late").read_bytes() == b"theirs"
  assert (tmp_path / "late2" / "x").read_bytes() == b"theirs"
  names = [tmp_path / "a", tmp_path / "late", tmp_path / "free"]
  found = write_under_free_name(names, lambda file: file.write(b"ours"))
  assert found == str(tmp_path / "free")
  assert listing(tmp_path) == [
    *("a", "broken", "folder", "free", "late", "late2"),
  ]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
  def refuse(*_):
    raise PermissionError(1, "Operation not permitted")

  monkeypatch.setattr(os, "link", refuse)
  (tmp_path / "0").write_bytes(b"theirs")
  names = [tmp_path / "0", tmp_path / "1"]
  write_under_free_name(names, lambda file: file.write(b"ours"))
  assert [name.read_bytes() for name in names] == [b"theirs", b"ours"]
  assert listing(tmp_path) == ["0", "1"]


def test_links_are_replaced_or_refused_never_followed(tmp_path):
  own = tmp_path / "own"
  own.write_bytes(b"a user's file")
  link = lambda name: (tmp_path / name).symlink_to(own)
  for name in ("a", "metrics", "lock", "lock.json", ".b.lock"):
    link(name)
  with replace_file(tmp_path / "a") as file:
    file.write(b"a")
  assert not (tmp_path / "a").is_symlink()
  for open_own in open_append, open_update:
    with pytest.raises(OSError, match="is a link, which is not followed"):
      open_own(tmp_path / "metrics")
  for lock in lock_folder(str(tmp_path)), lock_output(tmp_path / "b"):
    with pytest.raises(ConfigError, match="lock is a link"), lock:
      raise AssertionError
  (tmp_path / "lock").unlink()
  with lock_folder(str(tmp_path)):
    pass
  assert own.read_bytes() == b"a user's file"


def test_pipes_and_devices_are_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path, kind in (
    (tmp_path / "pipe", "a named pipe"),
    ("/dev/zero", "a dev"),
  ):
    with pytest.raises(OSError, match=f"it is {kind}.*a regular file is need"):
      open_regular(path)
  with pytest.raises(OSError, match="no regular file"):
    open_update(tmp_path / "pipe")
  with pytest.raises(IsADirectoryError):
    open_regular(tmp_path)
  (tmp_path / "link").symlink_to(__file__)
  assert read_regular(tmp_path / "link") == pathlib.Path(__file__).read_bytes()


def test_one_writer_and_what_a_killed_one_leaves(tmp_path):
  target = tmp_path / "model"
  (tmp_path / "model.part").mkdir()  # a user's own
  other = tmp_path / ".another.0123456789abcdef.part"
  other.write_bytes(b"of another output")
  holder = start(
    "with lock_output(path), new_folder(path) as part:\n"
    "  open(os.path.join(part, 'x'), 'w').close()\n"
    "  print('held', flush=True)\n"
    "  time.sleep(60)",
    target,
  )
  with holder:
    holder.stdout.readline()
    message = f"model is written by process {holder.pid} on .*choose another"
    with pytest.raises(OutputLocked, match=message), lock_output(target):
      raise AssertionError
    holder.send_signal(signal.SIGKILL)
  assert len(listing(tmp_path)) == 5  # a folder and a lock with its holder
  with lock_output(target), lock_output(target), new_folder(target):
    pass
  assert listing(tmp_path) == [other.name, "model", "model.part"]


COUNT = """
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
  while True:
    try:
      with lock_output(path):
        count = int(open(path).read())
        with replace_file(path, "utf-8") as file:
          file.write(str(count + 1))
      break
    except OutputLocked:
      time.sleep(0.001)
"""

NUMBERED = """
sys.stdin.readline()
for i in range(int(sys.argv[2])):
  names = (os.path.join(path, f"{n:05d}") for n in range(10**5))
  text = f"{os.getpid()} {i} ".encode() * 1000
  write_under_free_name(names, lambda file: file.write(text))
"""


def all_end(processes):
  for process in processes:
    with process:
      process.stdin.write("go\n")
      process.stdin.flush()
  assert [process.returncode for process in processes] == [0] * len(processes)


@pytest.mark.parametrize(
  "rounds", [5, pytest.param(100, marks=pytest.mark.slow)]
)
def test_a_lock_excludes_in_every_round(tmp_path, rounds):
  path = tmp_path / "count"
  path.write_text("0")
  all_end([start(COUNT, path, rounds) for _ in range(3)])
  assert path.read_text() == str(3 * rounds)
  assert listing(tmp_path) == ["count"]


@pytest.mark.parametrize(
  "rounds", [10, pytest.param(100, marks=pytest.mark.slow)]
)
def test_numbers_are_claimed_once(tmp_path, rounds):
  all_end([start(NUMBERED, tmp_path, rounds) for _ in range(3)])
  assert listing(tmp_path) == [f"{n:05d}" for n in range(3 * rounds)]
  texts = [path.read_text().split() for path in tmp_path.iterdir()]
  assert {len(words) for words in texts} == {2000}  # each is whole
  assert all(
    len(set(words[::2])) == len(set(words[1::2])) == 1 for words in texts
  )
  assert len({(words[0], words[1]) for words in texts}) == 3 * rounds


def test_temporary_names_fit_the_file_system(tmp_path):
  long = tmp_path / ("\u00e4" * 125)  # 250 bytes
  with replace_file(long) as file:
    file.write(b"x")
  assert len(os.path.basename(temporary_name(long)).encode()) <= 255
  assert temporary_name(long) != temporary_name(long)


CLOSED = """
from ldm_jax.cli.exit_codes import run_command
from ldm_jax.runtime.monitoring import progress

def main(arguments):
  progress.PERIOD = 0.0
  with progress.Progress("testing", 20) as bar:
    for _ in range(20):
      print("x" * 10_000)
      bar.update()
  open(arguments[0], "w").close()
  return 3

run_command(main)
"""


@pytest.mark.parametrize(
  "redirection, code",
  [
    ("2>&1 | true", 3),
    ("2> >(true) > /dev/null", 3),
    (">&-", 3),
    ("2>&-", 3),
    (">&- 2>&-", 3),
    ("> /dev/full", 6),
  ],
)
def test_a_command_goes_on_without_readers(tmp_path, redirection, code):
  """Only an output that was asked for and cannot be written is an error."""
  command = f'"$0" -c "$1" "$2" {redirection}; exit ${{PIPESTATUS[0]}}'
  done = subprocess.run(
    ["bash", "-c", command, sys.executable, CLOSED, tmp_path / "end"],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  assert done.returncode == code
  assert (tmp_path / "end").exists() == (code == 3)
  assert "Traceback" not in done.stderr


STOPPED = """
import time
from ldm_jax.runtime.monitoring.watchdog import Watchdog
with Watchdog(1.0, 2.0) as watchdog, watchdog.waiting_for("the input"):
  print("waits", flush=True)
  time.sleep(1.0)
print("done", flush=True)
with Watchdog(1.0, 2.0) as watchdog, watchdog.waiting_for("the input"):
  time.sleep(60)
"""


@pytest.mark.slow
def test_a_stopped_process_does_not_hang(tmp_path):
  process = start(STOPPED, tmp_path)
  assert process.stdout.readline() == "waits\n"
  process.send_signal(signal.SIGSTOP)
  time.sleep(5)
  process.send_signal(signal.SIGCONT)
  assert process.stdout.readline() == "done\n"
  assert process.wait(30) == 70  # a real one still ends the process


def test_images_are_numbered_around_those_of_others(tmp_path):
  written, others = [], ["00003.png", "\u00b2.png", "grid_00002.png"]
  pixels = np.zeros((1, 8, 8, 3), np.uint8)
  batch = outputs.GenerationBatch(pixels, (), [{}])
  (tmp_path / "00001.png").write_bytes(b"another's")

  def batches():
    yield batch
    for name in others:  # of a program that began at the same time
      (tmp_path / name).write_bytes(b"another's")
    yield batch

  outputs.write_images(
    batches(), str(tmp_path), has_metadata=False, written=written.append
  )
  names = [os.path.basename(path) for path in written]
  assert names == ["00002.png", "00004.png", "grid_00002_1.png"]
  for name in [*others, "00001.png"]:
    assert (tmp_path / name).read_bytes() == b"another's"
  latents = outputs.GenerationBatch(np.zeros((1, 2, 2, 4)), (), ())
  for name in "latents.npy", "latents_1.npy":
    path = str(tmp_path / "latents.npy")
    outputs.write_latents([latents], path, written=written.append)
    assert os.path.basename(written[-1]) == name
