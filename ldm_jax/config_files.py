"""Config files: finds them by path or name, and runs their get_config()."""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import runpy
import sys
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.fields import checks

PACKAGE = pathlib.Path(__file__).parent


def folder() -> pathlib.Path:
  """The folder of the configs that come with ldm_jax.

  It lies inside the package when that was installed from a wheel, and next to
  the package in a checkout of the repository.
  """
  installed = PACKAGE / "configs"
  return installed if installed.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
  """The names of these configs, such as "glyphs_text" and "sd/sd1"."""
  root = folder()
  files = (path.relative_to(root) for path in root.rglob("*.py"))
  return sorted(path.with_suffix("").as_posix() for path in files)


def find(path: str) -> str:
  """The file that `path` means; a name is looked up where no such file is.

  Args:
    path: a Python file, or a name with or without ".py", and with or without
      "configs/" before it: "sd/sd1", "configs/sd/sd1.py".

  Raises:
    ConfigError: there is neither such a file nor such a config.
  """
  for candidate in (path, f"{path}.py"):
    if pathlib.Path(candidate).is_file():
      return candidate
  name = path.removeprefix("configs/").removesuffix(".py")
  known = names()
  if name in known:
    return str(folder() / f"{name}.py")
  close = difflib.get_close_matches(name, known, 1)
  hint = f"; did you mean {close[0]}?" if close else ""
  raise ConfigError(f"config file not found: {path}{hint}")


def run(path: str) -> Any:
  """What `get_config()` of a Python file returns.

  Raises:
    ConfigError: there is no such function, or it or the file fails.
  """
  try:
    with _neighbours_importable(path):
      names = runpy.run_path(path)
  except (SyntaxError, ImportError, ValueError, TypeError) as error:
    raise ConfigError(f"{path}: {_cause(error)}") from error
  if "get_config" not in names:
    raise ConfigError(f"{path} has no function get_config()")
  try:
    return names["get_config"]()
  except (ImportError, ValueError, TypeError) as error:
    raise ConfigError(f"{path}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
  """An error's text; of a constructor's, the field of a wrong type.

  A constructor that compares its fields fails with Python's own TypeError if
  one of them is of a wrong type.
  """
  frame = error.__traceback__
  while frame is not None:
    node = frame.tb_frame.f_locals.get("self")
    is_constructor = frame.tb_frame.f_code.co_name == "__post_init__"
    if is_constructor and checks.is_node(node):
      try:
        checks.check_tree(node, type(node).__name__)
      except ConfigError as wrong:
        return str(wrong)
    frame = frame.tb_next
  return str(error)


@contextlib.contextmanager
def _neighbours_importable(path: str) -> Iterator[None]:
  """Imports find the files next to a config.

  Afterwards those modules are removed from sys.modules, except those that can
  be imported without it.
  """
  folder, before = os.path.dirname(os.path.abspath(path)), set(sys.modules)
  sys.path.insert(0, folder)
  try:
    yield
  finally:
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
      file = getattr(sys.modules[name], "__file__", None) or ""
      if os.path.dirname(file) == folder and not _is_importable(name, file):
        del sys.modules[name]


def _is_importable(name: str, file: str) -> bool:
  """Whether importing a loaded module again would read the same file."""
  module = sys.modules.pop(name)
  try:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin == file
  except (ImportError, ValueError):
    return False
  finally:
    sys.modules[name] = module
