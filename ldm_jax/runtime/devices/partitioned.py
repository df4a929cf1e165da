"""A program as XLA's SPMD partitioner divides it, for as many CPU devices.

For compilers that cannot print their programs. What they do with the
partitioner's collectives afterwards is not in it: joining and splitting them,
permuting in place of gathering, and casting before gathering, by which libtpu
halves the bytes of kernels that are used in bfloat16. An array that is a result
under several names may be gathered once where the compiled program does so for
each name.
"""

import glob
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

import ldm_jax

CHILD = (
  "import sys; sys.path.append(sys.argv.pop()); "
  "from ldm_jax.runtime.devices.partitioned import write_program; "
  "write_program(*sys.argv[1:])"
)
DEVICE_COUNT = r"--xla_force_host_platform_device_count=\d+"
UNOPTIMISED = "--xla_backend_optimization_level=0"  # the machine code alone
# The first pass that is for CPUs: it widens bfloat16.
CPU_PASS = "all-reduce-promotion"


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
    RuntimeError: the other process failed, with the end of what it wrote; or
      the function cannot be exported.
  """
  try:
    exported, mesh = _exported(function, args, out_shardings)
    with tempfile.TemporaryDirectory() as folder:
      return _written_by_child(folder, bytes(exported.serialize()), mesh)
  except (OSError, ValueError, TypeError, NotImplementedError) as error:
    raise RuntimeError(f"cannot partition the program: {error}") from error


def _exported(
  function: Callable, args: Sequence[Any], out_shardings: Any
) -> tuple[Any, str]:
  """The function of lists, since not every class of a tree can be serialised.

  And its mesh, as JSON of [[name, size], ...].
  """
  leaves, tree = jax.tree.flatten(tuple(args))
  is_sharding = lambda x: x is None or isinstance(x, jax.sharding.Sharding)
  shardings = jax.tree.map(
    lambda sharding, part: [sharding] * len(jax.tree.leaves(part)),
    out_shardings,
    jax.eval_shape(function, *args),
    is_leaf=is_sharding,
  )
  lists = jax.tree.leaves(shardings, is_leaf=lambda x: isinstance(x, list))

  def flat(*leaves: Any) -> list[Any]:
    return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))

  flat = jax.jit(flat, out_shardings=list(itertools.chain(*lists)))
  exported = jax.export.export(flat, platforms=("cpu",))(*leaves)
  mesh = leaves[0].sharding.mesh.shape
  return exported, json.dumps(list(mesh.items()))


def _written_by_child(folder: str, content: bytes, mesh: str) -> str:
  """What `write_program` writes in another process."""
  source, target = (os.path.join(folder, n) for n in ("exported", "program"))
  pathlib.Path(source).write_bytes(content)
  flags = re.sub(DEVICE_COUNT, "", os.environ.get("XLA_FLAGS", ""))
  package = str(pathlib.Path(ldm_jax.__file__).parent.parent)
  done = subprocess.run(
    [sys.executable, "-c", CHILD, source, target, mesh, package],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"{flags} {UNOPTIMISED}",
    },
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(
      "cannot partition the program: the process for it ended with "
      f"{done.returncode}: {done.stderr[-2000:]}"
    )
  return pathlib.Path(target).read_text()


def write_program(source: str, target: str, mesh: str) -> None:
  """Compiles an exported function for CPU devices and writes its HLO.

  That before the first pass which only the compiler of CPUs has.

  Args:
    source, target: files.
    mesh: its axes, as JSON of [[name, size], ...].
  """
  exported = jax.export.deserialize(pathlib.Path(source).read_bytes())
  jax.config.update("jax_num_cpu_devices", exported.nr_devices)
  jax.config.update("jax_enable_compilation_cache", False)  # passes must run
  names, sizes = zip(*json.loads(mesh), strict=True)
  devices = np.array(jax.devices()).reshape(sizes)
  concrete = jax.sharding.Mesh(devices, names)
  args = [
    jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
    for aval, sharding in zip(
      exported.in_avals, exported.in_shardings_jax(concrete), strict=True
    )
  ]
  out_shardings = list(exported.out_shardings_jax(concrete))
  lowered = jax.jit(exported.call, out_shardings=out_shardings).lower(*args)
  with tempfile.TemporaryDirectory() as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": CPU_PASS}
    lowered.compile(compiler_options=options)
    (path,) = glob.glob(f"{glob.escape(folder)}/*.before_{CPU_PASS}.txt")
    pathlib.Path(target).write_bytes(pathlib.Path(path).read_bytes())
