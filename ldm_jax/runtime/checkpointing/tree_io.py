"""Trees of arrays on disk, by Orbax, and whether they are what was written."""

import contextlib
import glob
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax.errors import DamagedFile
from ldm_jax.runtime.checkpointing.checksums import checksums
from ldm_jax.runtime.devices import processes


def save_tree(folder: str, tree: Any) -> None:
  """Writes one tree of arrays, in the place of what may be there."""
  ocp = import_orbax()
  if processes.is_first():
    for half in glob.glob(f"{glob.escape(absolute(folder))}.orbax-*"):
      shutil.rmtree(half, ignore_errors=True)
  with _whole(ocp) as checkpointer:
    checkpointer.save(
      absolute(folder),
      ocp.args.Composite(
        tree=ocp.args.StandardSave(tree),
        digests=ocp.args.JsonSave(checksums(tree).leaves),
      ),
      force=True,
    )


def load_tree(folder: str, target: Any) -> Any:
  """Reads what `save_tree` wrote, placed as `target` says.

  Raises:
    Damaged: it is not what was written.
  """
  ocp = import_orbax()

  with _whole(ocp) as checkpointer, damage_errors(folder):
    found = checkpointer.restore(
      absolute(folder),
      ocp.args.Composite(
        tree=ocp.args.StandardRestore(target), digests=ocp.args.JsonRestore()
      ),
    )
  check(folder, found["digests"], found["tree"])
  return found["tree"]


def verify_tree(
  folder: str, what: str, name: str = "tree"
) -> tuple[str | None, dict[str, str]]:
  """What is wrong with a tree beside its digests, or None; and the digests.

  Args:
    what: its name in what is told.
    name: its folder's below `folder`.
  """
  args, told = import_orbax().args, {}

  def part(name: str, how: Any) -> Any:
    with _whole(import_orbax()) as checkpointer:
      how = args.Composite(**{name: how})
      return checkpointer.restore(absolute(folder), how)[name]

  try:
    with damage_errors(what):
      told = part("digests", args.JsonRestore())
      found = part(name, _on_host(os.path.join(folder, name)))
    check(what, told, found, is_all=True)
  except DamagedFile as error:
    return str(error), told
  return None, told


def _on_host(folder: str) -> Any:
  """How to restore all of a tree into the host's memory, whoever saved it."""
  ocp = import_orbax()
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(absolute(folder)).item_metadata.tree
  each = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.args.PyTreeRestore(restore_args=jax.tree.map(each, tree))


def _whole(ocp: Any) -> Any:
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


@contextlib.contextmanager
def damage_errors(what: str) -> Iterator[None]:
  """What fails inside fails because of the files, but for want of memory."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise
  except Exception as error:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise DamagedFile(f"{what} cannot be read: {reason}") from error


def check(
  what: str, stored: Mapping[str, str], tree: Any, is_all: bool = False
) -> None:
  """Raises Damaged unless every leaf is what it was.

  Args:
    is_all: whether a stored leaf that the tree lacks counts, too.
  """
  found = checksums(tree).leaves
  odd = [path for path, word in found.items() if stored.get(path) != word]
  if is_all:
    odd += sorted(stored.keys() - found.keys())
  if odd:
    raise DamagedFile(f"{what} failed its digest at {odd[0]}")


def import_orbax() -> Any:
  """The library, late because it is slow, and without what it logs.

  Several processes share the writing of what all hold. One has nobody to share
  with, and would compile a slice of every shape for it.
  """
  import orbax.checkpoint as ocp

  logging.getLogger("absl").setLevel(logging.CRITICAL)
  if jax.process_count() == 1:
    alone = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, alone, override=True)
  return ocp


def absolute(folder: str) -> str:
  """Orbax fails late, and in a thread, on a relative path."""
  return folder if "://" in folder else os.path.abspath(folder)
