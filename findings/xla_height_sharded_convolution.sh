#!/usr/bin/env bash
# XLA: a convolution whose height is sharded over one axis of a mesh is computed
# wrongly if the mesh has a second axis that does not shard the rows.
#
# Expected: values and gradients equal those of one device, whatever is sharded.
# Seen with jax 0.12.0.1 (CPU, 2 x 2 devices), 3 x 3 convolutions, NHWC, the
# height sharded over "a": with the kernel's outputs or inputs over "b" the values
# are wrong by as much as they are large; with a replicated kernel the values are
# right and the kernel's gradient is twice what it should be. With the rows over
# "b" too, all is right.
# Exits with 1 if this has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.12.0.1
cat > "$folder/try.py" <<'P'
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

rng = np.random.default_rng(0)
x = rng.standard_normal((4, 16, 16, 8), np.float32)
kernel = rng.standard_normal((3, 3, 8, 16), np.float32)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))


def convolve(x, kernel):
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=layout
  )


def gradient(x, kernel):
  return jax.grad(lambda k: (convolve(x, k) ** 2).mean())(kernel)


def error(function, x_spec, kernel_spec):
  """The largest difference to one device, relative to the largest value."""
  expected = np.asarray(jax.jit(function)(x, kernel))
  place = lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec))
  found = jax.jit(function)(place(x, x_spec), place(kernel, kernel_spec))
  return float(np.abs(found - expected).max() / np.abs(expected).max())


HEIGHT, BOTH = P(None, "a"), P("b", "a")
CASES = {
  "height, outputs of the kernel": (HEIGHT, P(None, None, None, "b")),
  "height, inputs of the kernel": (HEIGHT, P(None, None, "b")),
  "height alone": (HEIGHT, P()),
  "height and rows": (BOTH, P()),
}
seen = {}
for name, specs in CASES.items():
  errors = [error(f, *specs) for f in (convolve, gradient)]
  print(f"sharded: {name}: errors of values and gradient", errors)
  seen[name] = [e > 0.1 for e in errors]
sys.exit(
  seen
  != {
    "height, outputs of the kernel": [True, True],
    "height, inputs of the kernel": [True, True],
    "height alone": [False, True],
    "height and rows": [False, False],
  }
)
P
"$folder/env/bin/python" "$folder/try.py"
