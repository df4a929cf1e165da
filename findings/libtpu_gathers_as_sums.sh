#!/usr/bin/env bash
# libtpu: along an axis of all 64 chips of a v5p 4x4x4, a sharded kernel is
# gathered by an all-reduce of arrays that are zero but for one shard.
#
# Expected: y = x w with rows of x and a part of w on each chip (FSDP) gathers w
# by one all-gather, as it does on 64 chips of v5e 8x8.
# Seen with jax 0.12.0.1 and libtpu 0.0.52, compiling ahead of time without a
# TPU: no all-gather and two all-reduces, one of the whole kernel, over 64 chips
# of v5p 4x4x4. With 4 x 16 chips, w sharded over 16, it is an all-gather.
# An all-reduce commonly sends about twice what an all-gather sends; nothing was
# run on a TPU. A program without all-gathers may hold them as all-reduces.
# Exits with 1 if this has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.12.0.1 libtpu==0.0.52
cat > "$folder/try.py" <<'P'
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

KERNEL = (3072, 12288)


def collectives(topology, copies, shards):
  """The all-gathers and all-reduces of whole kernels."""
  devices = topologies.get_topology_desc(topology, platform="tpu").devices
  grid = mesh_utils.create_device_mesh(
    (copies, shards), devices, allow_split_physical_axes=True
  )
  mesh = Mesh(grid, ("copies", "shards"))
  rows = NamedSharding(mesh, P(("copies", "shards")))
  shaped = lambda shape, sharding: jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=sharding
  )
  x = shaped((512, 256, KERNEL[0]), rows)
  w = shaped(KERNEL, NamedSharding(mesh, P(None, "shards")))
  product = jax.jit(lambda x, w: x @ w, out_shardings=rows)
  text = product.lower(x, w).compile().as_text()
  whole = rf"bf16\[{KERNEL[0]},{KERNEL[1]}\][^=]*"
  return [
    kind
    for kind in ("all-gather", "all-reduce")
    if re.search(rf"= {whole}{kind}(-start)?\(", text)
  ]


seen = {}
for topology, copies, shards in (
  ("v5p:4x4x4", 1, 64),
  ("v5p:4x4x4", 4, 16),
  ("v5e:8x8", 1, 64),
):
  seen[topology, shards] = collectives(topology, copies, shards)
  print(f"{topology}, kernel over {shards} chips: {seen[topology, shards]}")
sys.exit(
  seen
  != {
    ("v5p:4x4x4", 64): ["all-reduce"],
    ("v5p:4x4x4", 16): ["all-gather"],
    ("v5e:8x8", 64): ["all-gather"],
  }
)
P
"$folder/env/bin/python" "$folder/try.py" 2>/dev/null
