"""Tables of Parquet and Arrow files with random access to their rows.

Nothing of a file is executed: extension types that pyarrow's old releases read
by unpickling are refused, and so are those releases.
"""

import collections
import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files.regular_files import check_regular

PARQUET, ARROW = ".parquet", ".arrow"
MAX_GROUP = 2**32  # bytes of the columns of a row group, which is read whole
FIRST_SAFE = (14, 0, 1)  # pyarrow; CVE-2023-47248 before
PICKLED = b"arrow.py_extension_type"
METADATA = b"huggingface"  # of a schema: the features, as JSON


@runtime_checkable
class Table(Protocol):
  """A file of rows."""

  schema: Any

  def __len__(self) -> int: ...

  def row(self, index: int) -> dict[str, Any]:
    """The values of a row by column."""


class GroupCache:
  """The row groups that were read last, up to a number of bytes."""

  def __init__(self, size: float):
    self._size, self._used = size, 0
    self._groups: collections.OrderedDict[Any, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def get(self, key: Any, read: Callable[[], Any]) -> Any:
    """The table of a key; `read` is called unless it is there."""
    with self._lock:
      if key in self._groups:
        self._groups.move_to_end(key)
        return self._groups[key]
    table = read()
    with self._lock:
      if key not in self._groups:
        self._groups[key] = table
        self._used += table.nbytes
      while self._used > self._size and len(self._groups) > 1:
        self._used -= self._groups.popitem(last=False)[1].nbytes
    return table


def open_table(path: str, columns: Sequence[str], cache: GroupCache) -> Table:
  """The rows of a file, by its ending.

  Args:
    columns: to be read, of those that the file has.
    cache: shared with other files.

  Raises:
    ConfigError: pyarrow is missing, or a release that is not safe.
    DataError: it cannot be read, or a column would be unpickled.
  """
  with table_errors(path):
    _check_release()
    check_regular(path)
    kind = ParquetTable if path.endswith(PARQUET) else ArrowTable
    table = kind(path, columns, cache)
  for field in table.schema:
    if PICKLED in (field.metadata or {}).values():
      raise DataError(
        f"{path}: the column {field.name!r} holds pickled Python, which is not "
        "read; write it as bytes, text or numbers"
      )
  return table


class ParquetTable:
  """A Parquet file, of which row groups are read and kept."""

  def __init__(self, path: str, columns: Sequence[str], cache: GroupCache):
    import numpy as np
    import pyarrow.parquet as parquet

    self._path, self._cache, self._parquet = path, cache, parquet
    file = parquet.ParquetFile(path)
    self._metadata, self.schema = file.metadata, file.schema_arrow
    self._columns = [name for name in self.schema.names if name in columns]
    groups = range(self._metadata.num_row_groups)
    groups = [self._metadata.row_group(i) for i in groups]
    self._ends = np.cumsum([group.num_rows for group in groups])
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MAX_GROUP:
      raise DataError(
        f"{path} has a row group of {largest} bytes; at most {MAX_GROUP} are "
        "read at once: write it with row_group_size=100"
      )

  def __len__(self) -> int:
    return self._metadata.num_rows

  def row(self, index: int) -> dict[str, Any]:
    """The values of a row; its row group is read unless it is kept."""
    number = int(self._ends.searchsorted(index, side="right"))
    begin = int(self._ends[number - 1]) if number else 0
    with table_errors(self._path):
      read = functools.partial(self._read, number)
      table = self._cache.get((self._path, number), read)
      return {n: table[n][index - begin].as_py() for n in table.column_names}

  def _read(self, number: int) -> Any:
    # One handle for each: they may not be shared by threads.
    file = self._parquet.ParquetFile(self._path, metadata=self._metadata)
    with file:
      return file.read_row_group(number, self._columns, use_threads=False)


class ArrowTable:
  """An Arrow file or stream, as `datasets` saves it, mapped into memory."""

  def __init__(self, path: str, columns: Sequence[str], cache: GroupCache):
    import pyarrow as pa

    del cache
    self._path, mapped = path, pa.memory_map(path)
    try:
      reader = pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
      mapped.seek(0)
      reader = pa.ipc.open_file(mapped)
    table = reader.read_all()
    self.schema = table.schema
    self._table = table.select([n for n in table.column_names if n in columns])
    self._table.validate(full=True)  # offsets that lead out of the file

  def __len__(self) -> int:
    return len(self._table)

  def row(self, index: int) -> dict[str, Any]:
    """The values of a row."""
    with table_errors(self._path):
      table = self._table
      return {name: table[name][index].as_py() for name in table.column_names}


def features_of(schema: Any) -> dict[str, Any]:
  """The features that `datasets` wrote into a schema; {} without any.

  Raises:
    DataError: they are malformed.
  """
  text = (schema.metadata or {}).get(METADATA)
  if text is None:
    return {}
  try:
    features = json.loads(text)["info"]["features"]
    return features if isinstance(features, dict) else {}
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise DataError(f"its features are malformed: {error!r}") from error


@contextlib.contextmanager
def table_errors(path: str) -> Iterator[None]:
  """pyarrow's errors of a file as DataError with its path."""
  try:
    yield
  except (DataError, ConfigError):
    raise
  # pyarrow's own derive from ValueError, OSError, KeyError, ...; an index that
  # a damaged file gives raises further kinds.
  except Exception as error:
    line = " ".join(str(error).split())[:200]
    raise DataError(f"{path} cannot be read: {line}") from error


def _check_release() -> None:
  """Raises ConfigError without a release of pyarrow that unpickles nothing."""
  try:
    import pyarrow as pa
  except ImportError:
    raise ConfigError(
      "Parquet and Arrow files need: pip install pyarrow"
    ) from None
  release = tuple(int(n) for n in pa.__version__.split(".")[:3] if n.isdigit())
  if release < FIRST_SAFE:
    raise ConfigError(
      f"pyarrow {pa.__version__} may execute what a file holds; install "
      "14.0.1 or later"
    )
