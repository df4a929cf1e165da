"""Writes array records, which `Shards` reads."""

import os
import shutil
from collections.abc import Iterable, Mapping

import msgpack

from ldm_jax.errors import SaveFailed
from ldm_jax.files.atomic_writes import temporary_file


def write_record(path: str, examples: Iterable[Mapping[str, bytes]]) -> None:
  """Writes an array record for random access; it appears complete.

  Raises:
    SaveFailed: it cannot be written, as on a full disk.
  """
  from array_record.python import array_record_module

  with temporary_file(path) as name:
    writer = array_record_module.ArrayRecordWriter(
      name, "group_size:1,uncompressed"
    )
    try:
      for files in examples:
        writer.write(msgpack.packb(dict(files)))
      writer.close()
    except RuntimeError as error:  # its only exception; it names `name`
      reason = str(error).partition(";")[0]
      free = shutil.disk_usage(os.path.dirname(path) or ".").free
      raise SaveFailed(
        f"{path} is not written: {reason}; its disk has {free:,} bytes free"
      ) from error
