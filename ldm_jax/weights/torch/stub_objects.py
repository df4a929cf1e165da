"""What training leaves in a checkpoint: named, and never brought to life.

A checkpoint of Lightning holds, beside its tensors, callbacks, schedules and
hyper-parameters as Python objects. Each becomes a `StubObject` that keeps the
name; arguments, items and state that a pickle gives to it are dropped.
"""

import dataclasses

PACKAGES = (
  "pytorch_lightning.",
  "lightning.",
  "lightning_fabric.",
  "omegaconf.",
)

# Plain values of other libraries that those objects are made with. None of
# them is called; a pickle can do nothing with them but drop them.
NAMES = {
  "argparse.Namespace",
  "collections.Counter",
  "collections.defaultdict",
  "torch.device",
  "typing.Any",
  *(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in (
      *("bool", "bytes", "complex", "dict", "float", "frozenset", "int"),
      *("list", "long", "set", "str", "tuple", "unicode"),
    )
  ),
  *(
    f"{module}.{name}"
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("scalar",)
  ),
  "numpy.ndarray",
}


@dataclasses.dataclass(frozen=True)
class StubObject:
  """Stands for a Python class or an object of it, of which the name is left."""

  name: str


def is_stub(name: str) -> bool:
  """May a global of that name stand in a file, to be ignored?"""
  return name in NAMES or name.startswith(PACKAGES)
