#!/usr/bin/env bash
# XLA on CPUs: collectives of bfloat16 arrays are of float32.
#
# Expected: a program for eight virtual CPU devices shows the collectives that it
# would have on eight chips, so that their bytes can be counted without a TPU.
# Seen with jax 0.12.0.1 and libtpu 0.0.52: a gradient in bfloat16 with a kernel
# sharded over eight devices gathers and sums bf16 where it is compiled for v5e
# 2x4 (ahead of time, nothing was run), and f32, twice the bytes, for the CPUs.
# The partitioner makes bf16 for both: it is so in the text that XLA dumps before
# its pass all-reduce-promotion.
# Exits with 1 if this has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.12.0.1 libtpu==0.0.52
cat > "$folder/try.py" <<'P'
import os
import pathlib
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

jax.config.update("jax_num_cpu_devices", 8)
dumps = pathlib.Path(sys.argv[1])


def loss(kernel, x):
  return jnp.sum(((x @ kernel.astype(jnp.bfloat16)) ** 2).astype(jnp.float32))


def dtypes(text):
  """The dtype of each all-gather and all-reduce of matrices."""
  pattern = r"= \(?(\w+)\[\d+,\d+\][^=]*? (all-gather|all-reduce)(?:-start)?\("
  return sorted({(kind, dtype) for dtype, kind in re.findall(pattern, text)})


def compiled(devices, **options):
  rows = NamedSharding(Mesh(np.array(devices), ("shards",)), P("shards"))
  shaped = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
  kernel = shaped((512, 1024), jnp.float32)
  x = shaped((64, 512), jnp.bfloat16)
  step = jax.jit(jax.grad(loss), out_shardings=rows)
  return step.lower(kernel, x).compile(**options).as_text()


chips = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
options = {"xla_dump_to": str(dumps), "xla_dump_hlo_pass_re": ".*promotion"}
seen = {
  "for eight chips": dtypes(compiled(chips)),
  "for eight CPU devices": dtypes(
    compiled(jax.devices(), compiler_options=options)
  ),
}
(before,) = dumps.glob("*.before_all-reduce-promotion.txt")
seen["for these, before the pass"] = dtypes(before.read_text())
for where, found in seen.items():
  print(where, found)
both = lambda dtype: [("all-gather", dtype), ("all-reduce", dtype)]
sys.exit(list(seen.values()) != [both("bf16"), both("f32"), both("bf16")])
P
"$folder/env/bin/python" "$folder/try.py" "$folder/dumps" 2>/dev/null
