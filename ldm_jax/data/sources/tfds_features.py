"""Which feature classes a folder of tensorflow-datasets names.

tensorflow-datasets imports the module of any class in a features.json. So that
a data set cannot have a module imported, its files are looked at before.
"""

import sys
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files.strict_json import MAX_BYTES, parse_object

LEVELS = ("", "*/", "*/*/")  # versions, and versions of configs
OWN = "tensorflow_datasets.core.features."
# Keys of features.json, of the present form and the one before.
KEYS = ("pythonClassName", "python_class_name", "type")
PROTO_KEYS = ("proto_cls", "protoCls")
PROTO = "tensorflow_datasets."


def check_features(name: str, data_dir: str | None) -> None:
  """Looks at all versions of a data set that are prepared.

  Args:
    name: such as "mnist" or "coco/2017:1.1.0".
    data_dir: as of `tfds.builder`.

  Raises:
    ConfigError: one names a class that is neither of tensorflow-datasets nor
      imported already.
    DataError: a features.json is malformed.
  """
  from etils import epath
  from tensorflow_datasets.core.utils import file_utils

  base = name.partition(":")[0].partition("/")[0]
  for folder in file_utils.list_data_dirs(given_data_dir=data_dir):
    root = epath.Path(folder) / base
    paths = [
      path for level in LEVELS for path in root.glob(f"{level}features.json")
    ]
    for path in paths:
      if path.stat().length > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES} bytes")
      tree = parse_object(path.read_bytes(), str(path), DataError)
      for found in _foreign(tree):
        raise ConfigError(
          f"{path} names the class {found!r}, which is not of "
          "tensorflow-datasets; import its module first if you trust it"
        )


def _foreign(tree: Any) -> Iterator[str]:
  """Names of classes that tensorflow-datasets would have to import."""
  if isinstance(tree, list):
    for item in tree:
      yield from _foreign(item)
  elif isinstance(tree, dict):
    for key, value in tree.items():
      if isinstance(value, str):
        is_class = key in KEYS and "." in value and not value.startswith(OWN)
        if is_class and value.rpartition(".")[0] not in sys.modules:
          yield value
        if key in PROTO_KEYS and not value.startswith(PROTO):
          yield value
      else:
        yield from _foreign(value)
