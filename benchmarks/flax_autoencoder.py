"""The autoencoder of Stable Diffusion here and as diffusers' FlaxAutoencoderKL.

  python benchmarks/flax_autoencoder.py [--side 256] [--rounds 5]

diffusers deleted its Flax classes in 2026, so this needs an older release in
the same environment (pip install "diffusers<0.36" "transformers<5"). The two
modules get the same random weights and must give the same images; they take
turns in one process, jitted, float32. Prints a line of JSON for encoding,
decoding and the gradient of a reconstruction: median wall and CPU seconds,
their ratios, and bytes of temporaries of the compiled programs. Results:
benchmarks/flax.md.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.weights.naming import convert
from ldm_jax.weights.naming.parameter_names import name_table


def modules(channels):
  """(ours, its variables), (theirs, its variables) with the same weights."""
  widths = [channels * m for m in (1, 2, 4, 4)]
  theirs = FlaxAutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=tuple(widths),
    layers_per_block=2,
    latent_channels=4,
  )
  shapes = jax.eval_shape(theirs.init_weights, jax.random.key(0))
  rng = np.random.default_rng(0)

  def random(leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    fan = max(1, leaf.size // leaf.shape[-1])
    return values / fan**0.5 if len(leaf.shape) > 1 else values * 0.1 + 1

  params = jax.tree.map(random, shapes)
  ours = Autoencoder(ConvStack(channels))
  own = jax.eval_shape(
    ours.init,
    jax.random.key(0),
    jnp.zeros((1, 8, 8, 3)),
    jnp.zeros((1, 1, 1, 4)),
  )
  table = name_table("autoencoder", "flax", convert.shapes(own["params"]))
  flat = {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  found = convert.convert(table, flat)
  return (ours, {"params": jax.tree.map(jnp.asarray, found)}), (
    theirs,
    {"params": jax.tree.map(jnp.asarray, params)},
  )


def jobs(channels, side):
  """{job: {name: (jitted function, arguments)}}."""
  (ours, own), (theirs, other) = modules(channels)
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.uniform(-1, 1, (1, side, side, 3)), jnp.float32)
  z = jnp.asarray(
    rng.standard_normal((1, side // 8, side // 8, 4)), jnp.float32
  )

  def encode(params, x):
    return ours.apply(params, x, method="encode").mode()

  def encode_other(params, x):
    x = x.transpose(0, 3, 1, 2)
    found = theirs.apply(params, x, method=theirs.encode)
    return found.latent_dist.mode()

  def decode(params, z):
    return ours.apply(params, z, method="decode")

  def decode_other(params, z):
    found = theirs.apply(params, z.transpose(0, 3, 1, 2), method=theirs.decode)
    return found.sample.transpose(0, 2, 3, 1)

  def gradient(encode, decode):
    loss = lambda params, x: jnp.square(
      decode(params, encode(params, x)) - x
    ).mean()
    return jax.grad(loss)

  sides = {"here": own, "FlaxAutoencoderKL": other}
  functions = {
    "encode": (encode, encode_other),
    "decode": (decode, decode_other),
    "gradient": (
      gradient(encode, decode),
      gradient(encode_other, decode_other),
    ),
  }
  return {
    job: {
      name: (jax.jit(function), (params, z if job == "decode" else x))
      for (name, params), function in zip(sides.items(), pair, strict=True)
    }
    for job, pair in functions.items()
  }


def measure(pair, rounds):
  """Medians of alternating rounds, temporaries, and how much results differ."""
  compiled, results, seconds = {}, {}, {name: [] for name in pair}
  temporary = {}
  for name, (function, given) in pair.items():
    program = function.lower(*given).compile()
    temporary[name] = program.memory_analysis().temp_size_in_bytes
    compiled[name] = program
    results[name] = jax.block_until_ready(program(*given))
  for _ in range(rounds):
    for name, (_, given) in pair.items():
      wall, cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(compiled[name](*given))
      seconds[name].append(
        (time.perf_counter() - wall, time.process_time() - cpu)
      )
  medians = {
    name: [statistics.median(column) for column in zip(*rows, strict=True)]
    for name, rows in seconds.items()
  }
  return medians, temporary, results


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--side", type=int, default=256)
  flags.add_argument("--channels", type=int, default=128)
  flags.add_argument("--rounds", type=int, default=5)
  options = flags.parse_args()
  for job, pair in jobs(options.channels, options.side).items():
    medians, temporary, results = measure(pair, options.rounds)
    line = {"job": job, "side": options.side}
    for i, what in enumerate(("seconds", "cpu_seconds")):
      line[what] = {name: round(m[i], 3) for name, m in medians.items()}
      here, theirs = (m[i] for m in medians.values())
      line[f"{what}_ratio"] = round(here / theirs, 3)
    line["temporary_gb"] = {n: round(b / 1e9, 3) for n, b in temporary.items()}
    if job != "gradient":
      a, b = map(np.asarray, results.values())
      line["difference"] = float(np.abs(a - b).max() / np.abs(b).max())
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
