"""What decides which program is traced and compiled, as text."""

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import importlib.resources
import os
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any

import jax
import numpy as np

# Their code decides what is compiled, and `environment` holds their versions.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the compilers

# Settings of jax that change no program: of its caches, logs and transfers.
_OTHER_SETTINGS = ("cache", "log", "transfer_guard", "traceback", "dump")


class Unknown(TypeError):
  """A value whose effect on a program cannot be written down."""


def describe(value: Any) -> str:
  """Text that is equal, in all processes, only for equal values.

  Of numbers, texts, containers, arrays of numpy, dataclasses (so of modules of
  Flax), meshes and shardings; and of classes and functions of the standard
  library, of this package and of `LIBRARIES`, whose versions are known.

  Raises:
    Unknown: the value is none of these, such as a class of another package.
  """
  return "".join(_parts(value))


def describe_tree(form: Any) -> str:
  """`describe` of the form of a tree, as of `jax.tree.structure`."""
  node = form.node_data()
  if node is None:
    return str(form)
  children = ",".join(map(describe_tree, form.children()))
  return f"{describe(node)}[{children}]"


def settings() -> tuple[Any, ...]:
  """The settings of jax that may change a program, in this thread."""
  values = jax.config.values
  return tuple(values[name] for name in _setting_names())


@functools.cache
def environment() -> str:
  """The libraries, compilers and devices of this process."""
  devices = jax.devices()
  return describe(
    (
      {name: importlib.metadata.version(name) for name in LIBRARIES},
      {name: os.environ.get(name) for name in VARIABLES},
      sys.version,
      processor(),
      devices[0].client.platform_version,
      [(device.id, device.device_kind) for device in devices],
    )
  )


@functools.cache
def source_digest() -> str:
  """SHA-256, in hex, over the files of this package.

  Raises:
    Unknown: they are not files of a folder.
  """
  folder = importlib.resources.files(__package__.partition(".")[0])
  if not isinstance(folder, pathlib.Path):
    raise Unknown("the code is not in files")
  return digest_of_folder(folder)


def digest_of_folder(folder: pathlib.Path) -> str:
  """SHA-256, in hex, over the names and contents of its Python files."""
  found = hashlib.sha256()
  for path in sorted(folder.rglob("*.py")):
    content = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    found.update(f"{name}\n{len(content)}\n".encode())
    found.update(content)
  return found.hexdigest()


@functools.cache
def processor() -> str:
  """A name that processors with the same instruction sets share."""
  text = platform.machine() + platform.processor()
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    if line.startswith(("flags", "Features", "model name")):
      text += line
    elif not line:  # the end of the first core
      break
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _setting_names() -> tuple[str, ...]:
  names = sorted(jax.config.values)
  return tuple(n for n in names if not any(o in n for o in _OTHER_SETTINGS))


def _parts(value: Any) -> Iterator[str]:
  if value is None or isinstance(value, bool | int | float | str | bytes):
    yield f"{type(value).__name__}:{value!r};"
  elif isinstance(value, enum.Enum):
    yield f"{_name(type(value))}.{value.name};"
  elif isinstance(value, np.dtype):
    yield f"dtype:{value};"
  elif isinstance(value, np.ndarray | np.generic):
    array = np.asarray(value)
    if array.dtype.hasobject:
      raise Unknown(f"an array of {array.dtype}")
    content = hashlib.sha256(array.tobytes()).hexdigest()
    yield f"array:{array.dtype}{array.shape}{content};"
  elif isinstance(value, jax.ShapeDtypeStruct):
    sharding = _sharding(value.sharding)
    yield f"{value.shape}{value.dtype}{value.weak_type}{sharding};"
  elif isinstance(value, jax.tree_util.PyTreeDef):
    yield f"tree:{describe_tree(value)};"
  elif isinstance(value, jax.sharding.Mesh):
    yield f"mesh:{_mesh(value)};"
  elif isinstance(value, jax.sharding.Sharding):
    yield f"sharding:{_sharding(value)};"
  elif isinstance(value, functools.partial):
    yield from _container("partial", [value.func, value.args, value.keywords])
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    names = [field.name for field in dataclasses.fields(value)]
    fields = {n: getattr(value, n) for n in names if n != "parent"}
    yield from _container(_name(type(value)), [fields])
  elif isinstance(value, tuple | list):
    yield from _container(_name(type(value)), value)
  elif isinstance(value, Mapping):
    yield from _container(_name(type(value)), value.items())
  elif isinstance(value, Set):
    yield f"{_name(type(value))}({sorted(map(describe, value))});"
  else:
    yield f"{_name(value)};"


def _container(name: str, values: Any) -> Iterator[str]:
  yield f"{name}("
  for value in values:
    yield from _parts(value)
  yield ");"


def _name(value: Any) -> str:
  """module:name of a class or function that can be imported under it.

  Raises:
    Unknown: it cannot, or is of code whose version is not known.
  """
  if value is type(None):  # of trees; no module has it
    return "None"
  module = getattr(value, "__module__", None) or ""
  name = getattr(value, "__qualname__", getattr(value, "__name__", None)) or ""
  package = module.partition(".")[0]
  known = (*LIBRARIES, __package__.partition(".")[0])
  if package not in known and package not in sys.stdlib_module_names:
    raise Unknown(f"{type(value).__name__} of {module or 'no module'}")
  found: Any = sys.modules.get(module)
  for part in name.split("."):
    found = getattr(found, part, None)
  if found is not value or module == "__main__":
    raise Unknown(f"{name or type(value).__name__} of {module}")
  return f"{module}:{name}"


def _mesh(mesh: Any) -> str:
  devices = [(device.id, device.process_index) for device in mesh.devices.flat]
  return f"{mesh.axis_names}{mesh.devices.shape}{devices}{mesh.axis_types}"


def _sharding(sharding: Any) -> str:
  """Of the kinds that arrays of this package have."""
  if sharding is None:
    return "None"
  if isinstance(sharding, jax.sharding.NamedSharding):
    mesh, spec = _mesh(sharding.mesh), sharding.spec
    return f"{mesh}{spec!r}{sharding.memory_kind}"
  if isinstance(sharding, jax.sharding.SingleDeviceSharding):
    (device,) = sharding.device_set
    return f"{device.id}{sharding.memory_kind}"
  raise Unknown(f"a {type(sharding).__name__}")
