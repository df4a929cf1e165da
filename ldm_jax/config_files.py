"""Finds a config: a Python file, or the name of one that comes with ldm_jax."""

import difflib
import pathlib

from ldm_jax.errors import ConfigError

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
