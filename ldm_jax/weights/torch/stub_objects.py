"""Python objects in checkpoints that are replaced by stubs.

A checkpoint of Lightning holds, besides its tensors, callbacks, schedulers and
hyper-parameters as Python objects. Each is read as a `StubObject` with its
name; arguments, items and state are dropped.
"""

import dataclasses

PACKAGES = (
  "pytorch_lightning.",
  "lightning.",
  "lightning_fabric.",
  "omegaconf.",
  "argparse.",
)

# Classes of other libraries that those objects are built of. None of them is
# called.
NAMES = {
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
  """Replaces a Python class, or an object of it."""

  name: str


def is_stub(name: str) -> bool:
  """Whether a global of that name is read as a stub."""
  return name in NAMES or name.startswith(PACKAGES)
