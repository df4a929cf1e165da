"""A program as XLA's SPMD partitioner divides it, on as many CPU devices.

For compilers that cannot print their programs: what they do with the
partitioner's collectives afterwards (joining, splitting, overlapping) is not in
it, but which of them there are, and how large, is. An array that is a result
under several names may be gathered once where the compiled program does so for
each name.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

WRITE = (
  "import sys; from ldm_jax.runtime.devices.partitioned import write_program; "
  "write_program(*sys.argv[1:])"
)
DEVICES = r"--xla_force_host_platform_device_count=\d+"
OPTION = "--xla_backend_optimization_level=0"  # no collective depends on it


def partitioned_program(
  function: Callable, args: Sequence[Any], out_shardings: Any
) -> str:
  """The program of one device, as text of XLA's HLO.

  It is compiled in a process of its own, with a CPU device for each device of
  the mesh, because the number of a process's devices is fixed when it first
  uses one.

  Args:
    args: trees of `ShapeDtypeStruct`, all with shardings on one mesh.
    out_shardings: as of `jax.jit`.

  Raises:
    RuntimeError: the other process failed; with the end of what it wrote.
  """
  leaves, tree = jax.tree.flatten(tuple(args))
  homes = jax.tree.map(
    lambda home, part: [home] * len(jax.tree.leaves(part)),
    out_shardings,
    jax.eval_shape(function, *args),
    is_leaf=lambda home: (
      home is None or isinstance(home, jax.sharding.Sharding)
    ),
  )
  homes = jax.tree.leaves(homes, is_leaf=lambda part: isinstance(part, list))

  def flat(*leaves: Any) -> list[Any]:
    return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))

  # Lists, since not every class of a tree can be serialised.
  flat = jax.jit(flat, out_shardings=list(itertools.chain(*homes)))
  exported = jax.export.export(flat, platforms=("cpu",))(*leaves)
  shape = json.dumps(list(leaves[0].sharding.mesh.shape.items()))
  with tempfile.TemporaryDirectory() as folder:
    paths = [os.path.join(folder, name) for name in ("exported", "program")]
    with open(paths[0], "wb") as file:
      file.write(exported.serialize())
    flags = re.sub(DEVICES, "", os.environ.get("XLA_FLAGS", ""))
    done = subprocess.run(
      [sys.executable, "-c", WRITE, *paths, shape],
      env={
        **os.environ,
        "XLA_FLAGS": f"{flags} {OPTION}",
        "JAX_PLATFORMS": "cpu",
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    if done.returncode:
      raise RuntimeError(
        f"cannot partition for {exported.nr_devices} CPU devices: "
        f"{done.stderr[-2000:]}"
      )
    with open(paths[1]) as file:
      return file.read()


def write_program(source: str, target: str, shape: str) -> None:
  """Compiles an exported function for CPU devices and writes its HLO.

  Args:
    shape: the mesh, as JSON of [[name, size], ...].
  """
  with open(source, "rb") as file:
    exported = jax.export.deserialize(file.read())
  jax.config.update("jax_num_cpu_devices", exported.nr_devices)
  names, sizes = zip(*json.loads(shape), strict=True)
  devices = np.array(jax.devices()).reshape(sizes)
  mesh = jax.sharding.Mesh(devices, names)
  args = [
    jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=home)
    for aval, home in zip(
      exported.in_avals, exported.in_shardings_jax(mesh), strict=True
    )
  ]
  homes = list(exported.out_shardings_jax(mesh))
  call = jax.jit(exported.call, out_shardings=homes)
  compiled = call.lower(*args).compile()
  with open(target, "w") as file:
    file.write(compiled.as_text())
