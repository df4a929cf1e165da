"""Stable Diffusion 1.5's parts on a CPU, compared with torch and diffusers.

  python benchmarks/cpu.py [--rounds 5] [--torch_python PYTHON]

Processes hold the same networks (random weights, float32) and take turns, so
that load on the machine affects all: jax, jax with XLA's own operators alone
(`operators("xla")`), torch, and, for the steps, jax with an executable that
another process compiled ("stored"): its peak memory is without compilation.
Prints a line of JSON per job: medians of wall seconds and of CPU seconds (of
all cores, which other load changes little), their ratios to torch's, wall and
CPU seconds of the first call (which compiles), and each process's peak memory
in GB. On a busy machine set OMP_WAIT_POLICY=PASSIVE: torch's threads otherwise
wait in loops, which counts as CPU seconds. Needs torch and diffusers (pip
install torch diffusers), in this Python or another one. Results are in
benchmarks/cpu.md.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

WIDE, NARROW = (320, 640, 1280, 1280), (128, 256, 512, 512)
SIDES = ("jax", "xla", "torch", "stored")
STEPS = ("stage_one", "stage_two")
JOBS = {
  "unet": "SD 1.5's U-Net, forward, batch 2, 64 x 64",
  "decode": "kl-f8, decoding one image of 512 x 512",
  "stage_one": "kl-f8, 128 x 128: L1 + KL, AdamW, one step",
  "stage_two": "U-Net of SD 1.5's shape, width 128, 32 x 32, batch 2: L2, "
  "AdamW, one step",
}


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def jax_network(name):
  """A job's parameters, the function to apply, and the loss of a step."""
  import jax
  import jax.numpy as jnp

  from ldm_jax.nn.autoencoder import Autoencoder
  from ldm_jax.nn.bottleneck import GaussianBottleneck
  from ldm_jax.nn.conditioners.embedders import Condition
  from ldm_jax.nn.unet import UNet

  if name in ("unet", "stage_two"):
    side, width = (64, 320) if name == "unet" else (32, 128)
    network = UNet(channels=width)
    inputs = (
      jnp.asarray(normal(1, 2, side, side, 4)),
      jnp.full((2,), 500.0),
      Condition(context=jnp.asarray(normal(2, 2, 77, 768))),
    )
    target = jnp.asarray(normal(3, 2, side, side, 4))
    loss = lambda p: ((network.apply(p, *inputs) - target) ** 2).mean()
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    apply = lambda p: network.apply(p, *inputs)
  else:
    network = Autoencoder(bottleneck=GaussianBottleneck())
    image = jnp.asarray(normal(1, 1, 128, 128, 3)).clip(-1, 1)
    latents = jnp.asarray(normal(2, 1, 64, 64, 4))
    noise = jnp.asarray(normal(3, 1, 16, 16, 4))

    def loss(p):
      decoded, kl = network.apply(p, image, noise)
      return jnp.abs(decoded - image).mean() + 1e-6 * kl

    shapes = jax.eval_shape(network.init, jax.random.key(0), image, noise)
    apply = lambda p: network.apply(p, latents, method="decode")
  # Random numbers by numpy: the job is measured, not the initialization.
  leaves, tree = jax.tree.flatten(shapes)
  values = (
    jnp.array(np.float32(0.02) * normal(i, *leaf.shape), copy=True)
    for i, leaf in enumerate(leaves)
  )
  return jax.tree.unflatten(tree, list(values)), apply, loss


def jax_step(name):
  """The jitted step of AdamW, and its first state."""
  import jax
  import jax.numpy as jnp
  import optax

  params, _, loss = jax_network(name)
  optimizer = optax.adamw(1e-4)

  def step(state):
    params, moments = state
    # All gradients before all updates, as where their norm is taken, too, or
    # XLA copies the parameters.
    grads = jax.lax.optimization_barrier(jax.grad(loss)(params))
    changes, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, changes), moments

  # Written by NumPy, so that nothing else is compiled.
  zeros = lambda leaf: jnp.array(np.zeros(leaf.shape, leaf.dtype), copy=True)
  moments = jax.tree.map(zeros, jax.eval_shape(optimizer.init, params))
  return jax.jit(step, donate_argnums=0), (params, moments)


def jax_job(name, program=None):
  """A function without arguments that does a job and waits for it.

  Args:
    program: the file of a step's executable, by `store`, to load in place of
      compiling.
  """
  import jax

  if name in ("unet", "decode"):
    params, apply, _ = jax_network(name)
    forward = jax.jit(apply)
    return lambda: forward(params).block_until_ready()
  step, first = jax_step(name)
  if program:
    step = load(program, first)
  state = [first]
  del first

  def run():
    state[0] = jax.block_until_ready(step(state[0]))

  return run


def store(name, file):
  """Compiles a step and writes its executable."""
  from jax.experimental.serialize_executable import serialize

  step, state = jax_step(name)
  with open(file, "wb") as out:
    out.write(serialize(step.lower(state).compile())[0])


def load(file, state):
  """The executable that `store` wrote, a function of the state."""
  import jax
  from jax.experimental.serialize_executable import deserialize_and_load

  from ldm_jax.runtime.freed_memory import return_freed_memory

  tree = jax.tree.structure(((state,), {}))
  with open(file, "rb") as stored:
    program = deserialize_and_load(
      stored.read(), tree, jax.tree.structure(state)
    )
  return_freed_memory()
  return program


def torch_job(name):
  """The same by diffusers."""
  import torch
  from diffusers import AutoencoderKL, UNet2DConditionModel

  tensor = lambda seed, *shape: torch.from_numpy(normal(seed, *shape))
  if name in ("unet", "stage_two"):
    side, widths = (64, WIDE) if name == "unet" else (32, NARROW)
    # What diffusers calls attention_head_dim is the number of heads here.
    network = UNet2DConditionModel(
      block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8
    )
    xt, context = tensor(1, 2, 4, side, side), tensor(2, 2, 77, 768)
    target, t = tensor(3, 2, 4, side, side), torch.full((2,), 500)
    loss = lambda: ((network(xt, t, context).sample - target) ** 2).mean()
    apply = lambda: network(xt, t, context).sample
  else:
    network = AutoencoderKL(
      down_block_types=("DownEncoderBlock2D",) * 4,
      up_block_types=("UpDecoderBlock2D",) * 4,
      block_out_channels=(128, 256, 512, 512),
      layers_per_block=2,
    )
    image, latents = (
      tensor(1, 1, 3, 128, 128).clip(-1, 1),
      tensor(2, 1, 4, 64, 64),
    )
    noise = tensor(3, 1, 4, 16, 16)

    def loss():
      posterior = network.encode(image).latent_dist
      decoded = network.decode(posterior.mean + posterior.std * noise).sample
      return (decoded - image).abs().mean() + 1e-6 * posterior.kl().mean()

    apply = lambda: network.decode(latents).sample
  if name in ("unet", "decode"):
    network.eval()
    return torch.no_grad()(apply)
  optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

  def run():
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()

  return run


def work(library, name):
  """Does a job by a library, once for each line of stdin."""
  if library == "store":
    store(*name.split(","))
  elif library == "stored":
    take_turns(jax_job(*name.split(",")))
  elif library == "xla":
    from ldm_jax.nn.operators.choice import operators

    with operators("xla"):
      take_turns(jax_job(name))
  else:
    take_turns({"jax": jax_job, "torch": torch_job}[library](name))


def take_turns(run):
  """Runs a job once, and then once for each line of stdin."""
  began, cpu_began = time.perf_counter(), time.process_time()
  run()
  first, cpu = time.perf_counter() - began, time.process_time() - cpu_began
  print(json.dumps({"first": first, "cpu": cpu}), flush=True)
  for _ in sys.stdin:
    began, cpu_began = time.perf_counter(), time.process_time()
    run()
    seconds = time.perf_counter() - began
    cpu = time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = {"seconds": seconds, "cpu": cpu, "peak": peak}
    print(json.dumps(line), flush=True)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--rounds", type=int, default=5)
  flags.add_argument("--jobs", nargs="*", default=list(JOBS), choices=JOBS)
  flags.add_argument("--torch_python", default=sys.executable)
  flags.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
  flags.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
  options = flags.parse_args()
  if options.work:
    work(*options.work)
    return
  with tempfile.TemporaryDirectory() as folder:
    for name in options.jobs:
      print(json.dumps(compare(name, options, folder)), flush=True)


def compare(name, options, folder):
  """The line of a job: medians of every side, ratios to torch's, peaks."""
  sides, first = {}, {}
  for library in options.sides:
    python = sys.executable if library != "torch" else options.torch_python
    what = name
    if library == "stored":
      if name not in STEPS:
        continue
      what = f"{name},{folder}/{name}"
      subprocess.run([python, __file__, "--work", "store", what], check=True)
    sides[library] = subprocess.Popen(
      [python, __file__, "--work", library, what],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    first[library] = json.loads(sides[library].stdout.readline())
  units = {"seconds": {}, "cpu": {}}
  peaks = {}
  for _ in range(options.rounds):
    for library, side in sides.items():
      print("go", file=side.stdin, flush=True)
      line = json.loads(side.stdout.readline())
      for unit, values in units.items():
        values.setdefault(library, []).append(line[unit])
      peaks[library] = line["peak"]
      print(library, line, file=sys.stderr, flush=True)
  for side in sides.values():
    side.stdin.close()
    side.wait()
  line = {"job": name, "what": JOBS[name]}
  for unit, found in units.items():
    median = {n: statistics.median(values) for n, values in found.items()}
    line |= {f"{n}_{unit}": round(value, 3) for n, value in median.items()}
    for library in set(median) - {"torch"} if "torch" in median else ():
      ratio = median[library] / median["torch"]
      line[f"{library}_{unit}_ratio"] = round(ratio, 3)
  line |= {f"{n}_first": round(each["first"], 1) for n, each in first.items()}
  line |= {f"{n}_first_cpu": round(each["cpu"], 1) for n, each in first.items()}
  return line | {f"{n}_peak_gb": round(value, 2) for n, value in peaks.items()}


if __name__ == "__main__":
  main()
