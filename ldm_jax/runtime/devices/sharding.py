"""Where arrays live: a mesh, and a rule for every leaf of a state."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

AXES = ("data", "fsdp", "tensor", "context")
ROWS = ("data", "fsdp")  # axes that cut a batch

Rules = Sequence[tuple[str, int | None]]

IN, OUT = -2, -1  # axes of a kernel, whatever window comes before them

# (pattern over a leaf's path, axis that `tensor` cuts); the first that matches
# decides. A pair of layers is cut along the features between them (Shoeybi et
# al. 2019, section 3): the first by what comes out, the second by what goes in,
# and only the second's results are summed over devices.
RULES: Rules = (
  # One head: cutting its width would sum a whole matrix of logits.
  (r"coder/mid_attention/", None),
  # Heads of attention.
  (r"(^|/)(q|k|v)/(kernel|bias)$", OUT),
  (r"(^|/)out/kernel$", IN),
  # Feed-forwards, of the U-Net and of text encoders.
  (r"(^|/)up(_\d+)?/(kernel|bias)$", OUT),
  (r"(^|/)down(_\d+)?/kernel$", IN),
  # Channels inside residual blocks; the time is added to them there.
  (r"(^|/)(conv1|emb)/(kernel|bias)$", OUT),
  (r"(^|/)conv2/kernel$", IN),
)

# Read at every position of every row: a gather would cost more than a copy.
COPIED = r"positions$"

# Leaves of fewer elements are copied: a gather costs more than they weigh.
MIN_SIZE = 4096

# Arrays of a batch whose second axis is an image's height.
SPATIAL = ("image", "segmap", "mask", "low", "depth")


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices per axis of the mesh.

  Attributes:
    data: copies of the parameters, or None for all devices that are left. On
      several slices of a TPU, which talk over a slower network, they are its
      outer part.
    fsdp: parts into which parameters, optimizers and averages are cut, as the
      batch is.
    tensor: parts into which heads and inner channels are cut, within a layer.
    context: parts into which the height of images is cut.
  """

  data: int | None = None
  fsdp: int = 1
  tensor: int = 1
  context: int = 1

  def build(
    self, devices: Sequence[jax.Device] | None = None, rules: Rules = RULES
  ) -> "Sharding":
    """Lays the devices out.

    Raises:
      ValueError: if the axes' product is not the number of devices, or axes do
        not go together.
    """
    devices = jax.devices() if devices is None else list(devices)
    count, inner = len(devices), (self.fsdp, self.tensor, self.context)
    least = math.prod(max(1, size) for size in inner)
    data = count // least if self.data is None else self.data
    shape = (data, *inner)
    if min(shape) < 1 or math.prod(shape) != count:
      given = (self.data, *inner)
      told = " x ".join(
        f"{name}={size}"
        for name, size in zip(AXES, given, strict=True)
        if size is not None
      )
      needed = math.prod(shape)
      if self.data is None:
        needed = f"a multiple of {least}"
      raise ValueError(
        f"mesh {told} needs {needed} devices but there are {count}; "
        f"try data={count} and the others 1, or leave data out and give sizes "
        "that divide them"
      )
    if self.context > 1 and max(self.tensor, self.fsdp) > 1:
      # XLA's partitioner multiplies the gradients of convolutions' kernels
      # where height is cut and another axis cuts kernels, too.
      raise ValueError(
        f"mesh fsdp={self.fsdp}, tensor={self.tensor} and context="
        f"{self.context} exclude each other: gradients would be wrong; set "
        "context to 1, or both others"
      )
    return Sharding(Mesh(_laid_out(devices, shape), AXES), tuple(rules))


def _laid_out(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
  """Devices in the order in which neighbours on the mesh talk fastest."""
  if devices[0].platform != "tpu":
    return np.asarray(devices).reshape(shape)
  from jax.experimental import mesh_utils

  # An axis of the mesh may be a part of one of the torus: 4 of 8 x 8 chips.
  split = {"allow_split_physical_axes": True}
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, **split)
  if shape[0] % slices:
    raise ValueError(
      f"mesh data={shape[0]} must be a multiple of the {slices} slices, which "
      "hold copies of the parameters; lower fsdp, tensor or context"
    )
  return mesh_utils.create_hybrid_device_mesh(
    (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1), devices, **split
  )


@dataclasses.dataclass(frozen=True)
class Sharding:
  """A mesh with its rules; what the loop knows of the machine."""

  mesh: Mesh
  rules: Rules = RULES
  min_size: int = MIN_SIZE

  @property
  def replicated(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(self.mesh, P())

  @property
  def batch(self) -> NamedSharding:
    """The first axis over data and fsdp."""
    return NamedSharding(self.mesh, P(ROWS))

  @property
  def batch_shards(self) -> int:
    """Into how many a batch is cut."""
    return math.prod(self.mesh.shape[axis] for axis in ROWS)

  @property
  def platform(self) -> str:
    """Of the devices: tpu, gpu or cpu."""
    return self.mesh.devices.flat[0].platform

  def check_batch(self, batch: int, slices: int = 1) -> None:
    """Raises ValueError unless every device gets equal, whole slices."""
    parts = self.batch_shards * slices
    if batch % parts:
      near = max(1, round(batch / parts)) * parts
      raise ValueError(
        f"batch {batch} does not divide over {self.batch_shards} devices"
        + (f" times {slices} slices" if slices > 1 else "")
        + f"; try {near}"
      )

  def local_rows(self, batch: int) -> np.ndarray:
    """Which rows of a global batch this process's devices hold, rising."""
    places = self.batch.addressable_devices_indices_map((batch,))
    held = [np.arange(batch)[index] for (index,) in places.values()]
    return np.unique(np.concatenate(held))

  def tree_shardings(self, abstract: Any) -> Any:
    """The sharding of every leaf of a tree of shapes."""

    def place(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return NamedSharding(self.mesh, self.spec(name, leaf.shape))

    return jax.tree_util.tree_map_with_path(place, abstract)

  def spec(self, path: str, shape: tuple[int, ...]) -> P:
    """`tensor` as the rules say, `fsdp` on the largest axis that it divides."""
    names: list[str | None] = [None] * len(shape)
    if re.search(COPIED, path):
      return P()
    axis = self._axis(path, len(shape))
    tensor, fsdp = (self.mesh.shape[name] for name in ("tensor", "fsdp"))
    if axis is not None and tensor > 1 and shape[axis] % tensor == 0:
      names[axis] = "tensor"
    free = [
      i for i, n in enumerate(shape) if n % fsdp == 0 and names[i] is None
    ]
    if fsdp > 1 and free and math.prod(shape) >= self.min_size:
      names[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    while names and names[-1] is None:
      names.pop()
    return P(*names)

  def _axis(self, path: str, count: int) -> int | None:
    """Which of a leaf's axes `tensor` cuts."""
    for pattern, axis in self.rules:
      if re.search(pattern, path):
        return axis if axis is not None and -axis <= count else None
    return None

  def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as part of the global arrays."""
    count = len(next(iter(batch.values())))
    total = count * self.batch_shards // self._parts_here
    held = self.local_rows(total)

    def place(name: str, rows: np.ndarray) -> jax.Array:
      def piece(index: tuple[slice, ...]) -> np.ndarray:
        wanted = np.arange(total)[index[0]]
        begin = int(np.searchsorted(held, wanted[0]))
        return rows[(slice(begin, begin + len(wanted)), *index[1:])]

      shape = (total, *rows.shape[1:])
      return jax.make_array_from_callback(
        shape, self.array_sharding(name, shape), piece
      )

    return {name: place(name, rows) for name, rows in batch.items()}

  @property
  def _parts_here(self) -> int:
    """How many of a batch's parts this process holds."""
    return len(self.local_rows(self.batch_shards))

  def global_max(self, number: int) -> jax.Array:
    """The largest of the numbers that processes give, on every device."""
    place = NamedSharding(self.mesh, P(AXES))
    each = jax.make_array_from_callback(
      (self.mesh.size,), place, lambda index: np.full(1, number, np.int32)
    )
    return _largest(self.replicated)(each)

  def array_sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where an array of a batch lives: pictures are cut by height too."""
    parts = self.mesh.shape["context"]
    if parts == 1 or name not in SPATIAL or shape[1] % parts:
      return self.batch
    return NamedSharding(self.mesh, P(ROWS, "context"))

  def shard_heads(
    self, attend: Callable[..., Array], q: Array, k: Array, v: Array
  ) -> Array:
    """attend(q, k, v), [b l n d], which only knows arrays of one device.

    Each has its rows, its heads and, under `context`, its queries of an image
    and all keys. What an axis does not divide is done by all.
    """
    if self.mesh.size == 1:
      return attend(q, k, v)
    shape = self.mesh.shape
    axes = (
      ROWS if q.shape[0] % self.batch_shards == 0 else None,
      "context" if q.shape[1] % shape["context"] == 0 else None,
      "tensor" if q.shape[2] % shape["tensor"] == 0 else None,
    )
    ours, theirs = P(*axes), P(axes[0], None, axes[2])
    each = jax.shard_map(
      attend,
      mesh=self.mesh,
      in_specs=(ours, theirs, theirs),
      out_specs=ours,
      check_vma=False,
    )
    return each(q, k, v)

  def constrain_rows(self, x: Array) -> Array:
    """x, its rows kept where a batch's lie if devices divide them."""
    if x.ndim < 2 or x.shape[0] % self.batch_shards:
      return x
    free = [P.UNCONSTRAINED] * (x.ndim - 1)
    place = NamedSharding(self.mesh, P(ROWS, *free))
    return jax.lax.with_sharding_constraint(x, place)

  def distribute(self, tree: Any) -> Any:
    """Arrays of which every process has all rows: spread, if they divide."""

    def place(array: np.ndarray) -> jax.Array:
      rows = np.shape(array)[0]
      where = self.replicated if rows % self.batch_shards else self.batch
      return jax.make_array_from_callback(
        np.shape(array), where, lambda index: array[index]
      )

    return jax.tree.map(place, tree)


@functools.cache
def _largest(place: NamedSharding) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(jnp.max, out_shardings=place)
