"""Trees of arrays on disk, by Orbax, with a checksum of every leaf."""

import contextlib
import glob
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax.errors import DamagedFile
from ldm_jax.runtime.checkpointing.checksums import checksums
from ldm_jax.runtime.devices import processes

_SMALL = 2**20  # bytes


def save_tree(folder: str, tree: Any) -> None:
  """Writes one tree of arrays; replaces an earlier one."""
  ocp = import_orbax()
  if processes.is_first():
    # What an interrupted write has left.
    for part in glob.glob(f"{glob.escape(absolute(folder))}.orbax-*"):
      shutil.rmtree(part, ignore_errors=True)
  with _checkpointer(ocp) as checkpointer:
    checkpointer.save(
      absolute(folder),
      ocp.args.Composite(
        tree=ocp.args.StandardSave(tree),
        digests=ocp.args.JsonSave(checksums(tree).leaves),
      ),
      force=True,
    )


def load_tree(folder: str, target: Any) -> Any:
  """Reads what `save_tree` wrote.

  Args:
    target: tree of `ShapeDtypeStruct` with shardings.

  Raises:
    DamagedFile: it is not what was written.
  """
  ocp = import_orbax()
  with _checkpointer(ocp) as checkpointer, damage_errors(folder):
    found = checkpointer.restore(
      absolute(folder),
      ocp.args.Composite(
        tree=ocp.args.StandardRestore(read_once(target)),
        digests=ocp.args.JsonRestore(),
      ),
    )
  check_tree(folder, found["digests"], found["tree"])
  return placed(folder, found["tree"], target)


def read_once(target: Any) -> Any:
  """`target` for Orbax, with arrays of numpy for small replicated leaves.

  Each device's shard takes Orbax 0.12 some .2 ms: of small arrays on eight
  devices, three times the time of reading them once. Of large arrays it reads
  the devices' shards faster than an array of numpy.

  Args:
    target: tree of `ShapeDtypeStruct` with shardings.
  """

  def of(leaf: jax.ShapeDtypeStruct) -> Any:
    sharding = leaf.sharding
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    is_copied = sharding.is_fully_replicated and len(sharding.device_set) > 1
    if not is_copied or size > _SMALL:
      return leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

  return jax.tree.map(of, target)


def placed(what: str, found: Any, target: Any) -> Any:
  """What was restored by `read_once`, with the shardings of `target`.

  Raises:
    DamagedFile: an array has another shape; Orbax itself refuses that of
      arrays which it places.
  """

  def place(array: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if isinstance(array, jax.Array):
      return array
    if array.shape != leaf.shape:
      raise DamagedFile(
        f"{what} cannot be read: an array has the shape {array.shape}, needed "
        f"is {leaf.shape}"
      )
    part = lambda index: array[index]
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

  return jax.tree.map(place, found, target)


def verify_tree(
  folder: str, what: str, name: str = "tree"
) -> tuple[str | None, dict[str, str]]:
  """(error or None, stored checksum by leaf) of a tree; reads all of it.

  Args:
    what: names the tree in the error.
    name: of its subfolder in `folder`.
  """
  args, stored = import_orbax().args, {}

  def restore(name: str, restore_args: Any) -> Any:
    with _checkpointer(import_orbax()) as checkpointer:
      items = args.Composite(**{name: restore_args})
      return checkpointer.restore(absolute(folder), items)[name]

  try:
    with damage_errors(what):
      stored = restore("digests", args.JsonRestore())
      found = restore(name, _on_host(os.path.join(folder, name)))
    check_tree(what, stored, found, is_complete=True)
  except DamagedFile as error:
    return str(error), stored
  return None, stored


def _on_host(folder: str) -> Any:
  """Restore arguments for a whole tree as numpy arrays, saved on any mesh."""
  ocp = import_orbax()
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(absolute(folder)).item_metadata.tree
  each = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.args.PyTreeRestore(restore_args=jax.tree.map(each, tree))


def _checkpointer(ocp: Any) -> Any:
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


@contextlib.contextmanager
def damage_errors(what: str) -> Iterator[None]:
  """Any exception of the block becomes DamagedFile, except lack of memory.

  Orbax and TensorStore raise exceptions of many types for damaged files.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise
  except Exception as error:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise DamagedFile(f"{what} cannot be read: {reason}") from error


def check_tree(
  what: str, stored: Mapping[str, str], tree: Any, is_complete: bool = False
) -> None:
  """Compares every leaf with its stored checksum.

  Args:
    is_complete: whether leaves that the tree lacks count as damage.

  Raises:
    DamagedFile: one differs.
  """
  found = checksums(tree).leaves
  wrong = [path for path, value in found.items() if stored.get(path) != value]
  if is_complete:
    wrong += sorted(stored.keys() - found.keys())
  if wrong:
    raise DamagedFile(f"{what}: wrong checksum of {wrong[0]}")


def import_orbax() -> Any:
  """orbax.checkpoint, imported late because it is slow; its logging is off.

  With several processes Orbax divides the writing of replicated arrays among
  them. A single process has nothing to divide, and would compile a slice of
  every shape for it; so this is switched off.
  """
  import orbax.checkpoint as ocp

  logging.getLogger("absl").setLevel(logging.CRITICAL)
  if jax.process_count() == 1:
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
  return ocp


def absolute(folder: str) -> str:
  """An absolute path: Orbax fails late, and in a thread, on a relative one."""
  return folder if "://" in folder else os.path.abspath(folder)
