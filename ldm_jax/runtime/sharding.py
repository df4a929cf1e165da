"""Where arrays live: a mesh, and a rule for every leaf of a state."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, P]]

# (pattern over a leaf's path, spec); the first that matches decides. What no
# rule names is cut along its largest axis that `fsdp` divides.
RULES: Rules = (
  # Read at every position of every row: a gather would cost more than a copy.
  (r"positions$", P()),
)

# Leaves of fewer elements are copied: a gather costs more than they weigh.
SMALLEST = 4096


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices per axis of the mesh. Both axes split the batch.

  Attributes:
    data: copies of the parameters, or None for all devices that are left.
    fsdp: parts into which parameters, optimizers and averages are cut.
  """

  data: int | None = None
  fsdp: int = 1

  def build(
    self, devices: Sequence[jax.Device] | None = None, rules: Rules = RULES
  ) -> "Sharding":
    """Lays the devices out.

    Raises:
      ValueError: if the axes' product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = count // max(1, self.fsdp) if self.data is None else self.data
    if data < 1 or self.fsdp < 1 or data * self.fsdp != count:
      raise ValueError(
        f"mesh data={data} x fsdp={self.fsdp} needs {data * self.fsdp} "
        f"devices but there are {count}; try data={count} fsdp=1, or leave "
        "data out and give an fsdp that divides them"
      )
    grid = np.asarray(devices).reshape(data, self.fsdp)
    return Sharding(Mesh(grid, ("data", "fsdp")), tuple(rules))


@dataclasses.dataclass(frozen=True)
class Sharding:
  """A mesh with its rules; what the loop knows of the machine."""

  mesh: Mesh
  rules: Rules = RULES
  smallest: int = SMALLEST

  @property
  def replicated(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(self.mesh, P())

  @property
  def batch(self) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(self.mesh, P(("data", "fsdp")))

  def check_batch(self, batch: int, slices: int = 1) -> None:
    """Raises ValueError unless every device gets equal, whole slices."""
    devices = self.mesh.size * slices
    if batch % devices:
      near = max(1, round(batch / devices)) * devices
      raise ValueError(
        f"batch {batch} does not divide over {self.mesh.size} devices"
        + (f" times {slices} slices" if slices > 1 else "")
        + f"; try {near}"
      )

  def state(self, abstract: Any) -> Any:
    """The sharding of every leaf of a tree of shapes."""

    def place(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return NamedSharding(self.mesh, self.spec(name, leaf.shape))

    return jax.tree_util.tree_map_with_path(place, abstract)

  def spec(self, path: str, shape: tuple[int, ...]) -> P:
    """The first rule that matches `path`, or the largest divisible axis."""
    for pattern, spec in self.rules:
      if re.search(pattern, path):
        return spec
    parts = self.mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < self.smallest:
      return P()
    largest = max(axes, key=lambda i: (shape[i], i))
    return P(*(None,) * largest, "fsdp")

  def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as part of the global arrays."""
    return {
      name: jax.make_array_from_process_local_data(self.batch, rows)
      for name, rows in batch.items()
    }

  def whole(self, tree: Any) -> Any:
    """Arrays of which every process has all rows: spread, if they divide."""

    def place(array: np.ndarray) -> jax.Array:
      rows = np.shape(array)[0]
      where = self.replicated if rows % self.mesh.size else self.batch
      return jax.make_array_from_callback(
        np.shape(array), where, lambda index: array[index]
      )

    return jax.tree.map(place, tree)

  def gather(self, array: jax.Array) -> np.ndarray:
    """All rows of an array in order, on every process's host."""
    if array.is_fully_addressable:
      return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(array, tiled=True)

  def ahead(
    self, batches: Iterable[dict[str, np.ndarray]], depth: int = 2
  ) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, `depth` of them before they are asked for."""
    waiting = []
    for batch in batches:
      waiting.append(self.put(batch))
      if len(waiting) > depth:
        yield waiting.pop(0)
    yield from waiting
