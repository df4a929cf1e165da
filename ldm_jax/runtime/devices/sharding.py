"""Meshes, and the sharding of batches and of every leaf of a state."""

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

from ldm_jax.fields.limits import Count
from ldm_jax.fields.stack_names import STACK
from ldm_jax.runtime.devices.sharding_rules import (
  CONVOLUTION_RULES,
  MIN_SIZE,
  REPLICATED,
  RULES,
  Rules,
  tensor_axis,
)

AXES = ("data", "fsdp", "tensor", "context")
ROWS = ("data", "fsdp")  # mesh axes that shard a batch

# Arrays of a batch whose second axis is an image's height.
SPATIAL = ("image", "moments", "segmap", "mask", "low", "depth")


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices per axis of the mesh.

  Attributes:
    data: data parallelism, with a copy of the parameters each; None is all
      remaining devices. With several TPU slices, which are connected by a
      slower network, it is the axis over slices.
    fsdp: fully sharded data parallelism: parameters, optimizer states, averages
      and the batch are sharded.
    tensor: tensor parallelism: heads and inner channels of layers are sharded.
    context: sequence parallelism: the height of images and latents is sharded,
      and with it the tokens of transformers.
  """

  data: Count | None = None
  fsdp: Count = 1
  tensor: Count = 1
  context: Count = 1

  def build(
    self, devices: Sequence[jax.Device] | None = None, rules: Rules = RULES
  ) -> "Sharding":
    """A mesh of the devices, all of them by default.

    Raises:
      ValueError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count, inner = len(devices), (self.fsdp, self.tensor, self.context)
    fixed = math.prod(max(1, size) for size in inner)
    data = count // fixed if self.data is None else self.data
    shape = (data, *inner)
    if min(shape) < 1 or math.prod(shape) != count:
      given = (self.data, *inner)
      text = " x ".join(
        f"{name}={size}"
        for name, size in zip(AXES, given, strict=True)
        if size is not None
      )
      needed = math.prod(shape)
      if self.data is None:
        needed = f"a multiple of {fixed}"
      raise ValueError(
        f"mesh {text} needs {needed} devices but there are {count}; "
        f"try data={count} and the others 1, or leave data out and give sizes "
        "that divide them"
      )
    return Sharding(Mesh(_device_grid(devices, shape), AXES), tuple(rules))


def _device_grid(
  devices: list[jax.Device], shape: tuple[int, ...]
) -> np.ndarray:
  """Devices in an order that suits the network of a TPU."""
  if devices[0].platform != "tpu":
    return np.asarray(devices).reshape(shape)
  from jax.experimental import mesh_utils

  # A mesh axis may be a part of a torus axis, as 4 of 8 x 8 chips.
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
  """A mesh with the rules of sharding.

  Attributes:
    rules: which axis of a leaf `tensor` shards.
    min_size: leaves of fewer elements are replicated over `fsdp`.
  """

  mesh: Mesh
  rules: Rules = RULES
  min_size: int = MIN_SIZE

  @property
  def replicated(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(self.mesh, P())

  @property
  def batch(self) -> NamedSharding:
    """The first axis sharded over data and fsdp."""
    return NamedSharding(self.mesh, P(ROWS))

  @property
  def batch_shards(self) -> int:
    """Number of parts of a batch."""
    return math.prod(self.mesh.shape[axis] for axis in ROWS)

  @property
  def platform(self) -> str:
    """Of the devices: "tpu", "gpu" or "cpu"."""
    return self.mesh.devices.flat[0].platform

  def check_batch(self, batch: int, slices: int = 1) -> None:
    """Raises ValueError unless slices divide evenly over devices.

    Args:
      slices: of gradient accumulation.
    """
    parts = self.batch_shards * slices
    if batch % parts:
      near = max(1, round(batch / parts)) * parts
      raise ValueError(
        f"batch {batch} does not divide over {self.batch_shards} devices"
        + (f" times {slices} slices" if slices > 1 else "")
        + f"; try {near}"
      )

  def local_rows(self, batch: int) -> np.ndarray:
    """Rows of a global batch on this process's devices, in rising order."""
    indices = self.batch.addressable_devices_indices_map((batch,))
    rows = [np.arange(batch)[index] for (index,) in indices.values()]
    return np.unique(np.concatenate(rows))

  def tree_shardings(self, abstract: Any) -> Any:
    """The sharding of every leaf of a tree of shapes."""

    def sharding(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return NamedSharding(self.mesh, self.spec(name, leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, abstract)

  def spec(self, path: str, shape: tuple[int, ...]) -> P:
    """`tensor` by the rules, `fsdp` on the largest axis that it divides.

    The first axis of stacked blocks is not sharded, and their other axes are as
    those of a block.
    """
    if STACK.search(path) and shape:
      block = self.spec(STACK.sub("block", path), shape[1:])
      return P(None, *block) if any(block) else P()
    names: list[str | None] = [None] * len(shape)
    if re.search(REPLICATED, path):
      return P()
    rules = self.rules
    if self.mesh.shape["context"] > 1:
      # XLA's partitioner computes convolutions wrongly where height and
      # channels are sharded.
      rules = [rule for rule in rules if rule not in CONVOLUTION_RULES]
    axis = tensor_axis(rules, path, len(shape))
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

  def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from each process's rows of a batch."""
    count = len(next(iter(batch.values())))
    total = count * self.batch_shards // self._local_shards
    local = self.local_rows(total)

    def place(name: str, rows: np.ndarray) -> jax.Array:
      def part(index: tuple[slice, ...]) -> np.ndarray:
        wanted = np.arange(total)[index[0]]
        begin = int(np.searchsorted(local, wanted[0]))
        return rows[(slice(begin, begin + len(wanted)), *index[1:])]

      shape = (total, *rows.shape[1:])
      return jax.make_array_from_callback(
        shape, self.array_sharding(name, shape), part
      )

    return {name: place(name, rows) for name, rows in batch.items()}

  @property
  def _local_shards(self) -> int:
    """Number of a batch's parts on this process."""
    return len(self.local_rows(self.batch_shards))

  def global_max(self, number: int) -> jax.Array:
    """The maximum of the processes' numbers, on every device; asynchronous."""
    sharding = NamedSharding(self.mesh, P(AXES))
    each = jax.make_array_from_callback(
      (self.mesh.size,), sharding, lambda index: np.full(1, number, np.int32)
    )
    return _max(self.replicated)(each)

  def array_sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array of a batch; images also by height."""
    parts = self.mesh.shape["context"]
    if parts == 1 or name not in SPATIAL or shape[1] % parts:
      return self.batch
    return NamedSharding(self.mesh, P(ROWS, "context"))

  def shard_heads(
    self, attend: Callable[..., Array], q: Array, k: Array, v: Array
  ) -> Array:
    """attend(q, k, v), [b l n d], with an `attend` for arrays of one device.

    By shard_map each device has its rows, its heads and, under `context`, its
    queries and all keys. An axis that does not divide evenly is replicated.
    """
    if self.mesh.size == 1:
      return attend(q, k, v)
    shape = self.mesh.shape
    axes = (
      ROWS if q.shape[0] % self.batch_shards == 0 else None,
      "context" if q.shape[1] % shape["context"] == 0 else None,
      "tensor" if q.shape[2] % shape["tensor"] == 0 else None,
    )
    queries, keys = P(*axes), P(axes[0], None, axes[2])
    each = jax.shard_map(
      attend,
      mesh=self.mesh,
      in_specs=(queries, keys, keys),
      out_specs=queries,
      check_vma=False,
    )
    return each(q, k, v)

  def constrain_rows(self, x: Array) -> Array:
    """x with its first axis sharded as a batch's, if it divides evenly.

    So is the second of three axes over `context`: tokens.
    """
    if x.ndim < 2 or x.shape[0] % self.batch_shards:
      return x
    axes = [ROWS, *[P.UNCONSTRAINED] * (x.ndim - 1)]
    context = self.mesh.shape["context"]
    if x.ndim == 3 and context > 1 and x.shape[1] % context == 0:
      axes[1] = "context"
    sharding = NamedSharding(self.mesh, P(*axes))
    return jax.lax.with_sharding_constraint(x, sharding)

  def distribute(self, tree: Any) -> Any:
    """Global arrays from a tree that is the same on every process.

    Sharded along the first axis if it divides evenly, else replicated.
    """

    def place(array: np.ndarray) -> jax.Array:
      rows = np.shape(array)[0]
      sharding = self.replicated if rows % self.batch_shards else self.batch
      return jax.make_array_from_callback(
        np.shape(array), sharding, lambda index: array[index]
      )

    return jax.tree.map(place, tree)


@functools.cache
def _max(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(jnp.max, out_shardings=sharding)
