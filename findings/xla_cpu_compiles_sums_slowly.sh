#!/usr/bin/env bash
# XLA:CPU: the sums of an array's slices take ten to twenty times as long to
# compile as the same sums as a product with a constant matrix.
#
# Expected: 16 sums of 9 slices, which are a few loops over memory, compile as fast
# as a product, or nearly so.
# Seen with jax 0.12.0.1 (CPU): Winograd's transform of a 3 x 3 kernel takes 200 to
# 250 CPU milliseconds as sums that are stacked, and 10 to 20 as a product; the
# product also runs at least as fast. A network with convolutions of many shapes
# spends most of its compile time so.
# Exits with 1 if this has changed: less than four times as long.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.12.0.1
cat > "$folder/try.py" <<'P'
import os
import statistics
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
import jax
import jax.numpy as jnp
import numpy as np

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def rows(g):
  outer, inner = (g[0] + g[2]) * 0.5, g[1] * 0.5
  return [g[0], outer + inner, outer - inner, g[2]]


def by_sums(kernel):
  columns = [rows([kernel[i, j] for i in range(3)]) for j in range(3)]
  grid = [rows(list(row)) for row in zip(*columns)]
  return jnp.stack([cell for row in grid for cell in row])


def by_product(kernel):
  matrix = jnp.asarray(np.kron(G, G), jnp.float32)
  return (matrix @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def seconds(function, kernel):
  lowered = jax.jit(function).lower(kernel)
  began = time.process_time()
  program = lowered.compile()
  return time.process_time() - began, np.asarray(program(kernel))


seen = {by_sums: [], by_product: []}
rng = np.random.default_rng(0)
for width in (64, 96, 128, 160, 192):
  kernel = rng.standard_normal((3, 3, width, width)).astype(np.float32)
  results = []
  for function, times in seen.items():
    spent, result = seconds(function, kernel)
    times.append(spent)
    results.append(result)
  np.testing.assert_allclose(*results, rtol=0, atol=1e-5)
sums, product = (statistics.median(times[1:]) for times in seen.values())
print(f"sums {sums * 1e3:.0f} ms, product {product * 1e3:.0f} ms")
sys.exit(sums < 4 * product)
P
"$folder/env/bin/python" "$folder/try.py"
