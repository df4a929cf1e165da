"""A tiny decoder and the one that it imitates: PSNR, time, memory.

  python benchmarks/tiny_decoder.py runs/tiny
  python benchmarks/tiny_decoder.py --full_size

The first form takes a run of configs/tiny_decoder.py, which holds its teacher:
the modes of the held-out photographs are decoded by both. The second decodes
random latents of a 512 x 512 image by kl-f8 and by TAESD, with random weights
of their published shapes. Both decoders run in turn in one process; times are
medians of all rounds, memory is the temporaries of the compiled program.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.pixels import to_float
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.training.dataloading import held_out
from ldm_jax.training.first_stage import teacher
from ldm_jax.training.first_stage.reconstruction_loss import psnr

Decode = Callable[[jax.Array], jax.Array]


def compiled(function: Decode, latents: jax.Array) -> tuple[Decode, float]:
  """The program for these latents, and its temporaries in GB."""
  program = jax.jit(function).lower(latents).compile()
  return program, program.memory_analysis().temp_size_in_bytes / 1e9


def compare(decoders: dict[str, Decode], latents: jax.Array, rounds: int):
  """Prints a row of each decoder; returns their images."""
  made = {name: compiled(each, latents) for name, each in decoders.items()}
  walls, cpus = ({name: [] for name in made} for _ in range(2))
  images = {name: program(latents) for name, (program, _) in made.items()}
  for _ in range(rounds):
    for name, (program, _) in made.items():
      wall, cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(program(latents))
      walls[name].append(time.perf_counter() - wall)
      cpus[name].append(time.process_time() - cpu)
  medians = [
    {name: statistics.median(values) for name, values in each.items()}
    for each in (walls, cpus)
  ]
  first = next(iter(made))
  print("| decoder | wall, s | times faster | CPU, s | times less | GB |")
  print("|---|---|---|---|---|---|")
  for name, (_, memory) in made.items():
    cells = [f"{memory:.3f}"]
    for each in reversed(medians):
      cells = [f"{each[name]:.4f}", f"{each[first] / each[name]:.1f}", *cells]
    print("|", " | ".join([name, *cells]), "|", flush=True)
  return images


def measure_run(folder: str, rounds: int) -> None:
  """Prints PSNR on the held-out photographs, and the table."""
  run, sharding = Run.open(folder), MeshShape().build()
  task, frozen = run.experiment.task, run.frozen(sharding)
  params, stage = run.trained(sharding), task.first_stage
  photographs = to_float(jnp.asarray(held_out(run.experiment, None)["image"]))
  encode = jax.jit(lambda x: teacher.encode(stage, frozen, x).mode())
  latents = frozen.latent_scale * encode(photographs)
  decoders = {
    "teacher": lambda z: teacher.decode(stage, frozen, z),
    "student": lambda z: task.autoencoder.apply(params, z, method="decode"),
  }
  print(f"{len(photographs)} photographs of {photographs.shape[1:3]}")
  ours = compare(decoders, latents, rounds)
  for a, b in (("student", "teacher"), ("student", ""), ("teacher", "")):
    other = ours[b] if b else photographs
    each = [
      f"{psnr(x[None], y[None]):.2f}"
      for x, y in zip(ours[a], other, strict=True)
    ]
    against = b or "photographs"
    print(f"{a} against {against}: {psnr(ours[a], other):.2f} dB", each)


def random_decoder(stage: FirstStage) -> Decode:
  """Decoding with weights of variance 1 / fan-in."""
  side = stage.stride
  images = jnp.zeros((1, side, side, 3))
  noise = jnp.zeros((1, *stage.latent_shape(side, side)))
  shapes = jax.eval_shape(stage.init, jax.random.key(0), images, noise)
  rng = np.random.default_rng(0)

  def sample(leaf: Any) -> jax.Array:
    fan = np.prod(leaf.shape[:-1]) or 1
    values = rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan)
    return jnp.asarray(np.float32(values + (leaf.ndim == 1)))

  variables = jax.tree.map(sample, shapes)
  return lambda z: stage.apply(variables, z, method="decode")


def measure_full_size(rounds: int) -> None:
  """Prints the table of kl-f8 and TAESD at 512 x 512."""
  rng = np.random.default_rng(1)
  latents = jnp.asarray(rng.standard_normal((1, 64, 64, 4), np.float32))
  stages = {"kl-f8": Autoencoder(), "TAESD": TinyAutoencoder()}
  decoders = {name: random_decoder(each) for name, each in stages.items()}
  compare(decoders, latents, rounds)


def main() -> None:
  """Measures a run, or the published sizes."""
  parser = argparse.ArgumentParser()
  parser.add_argument("run", nargs="?")
  parser.add_argument("--full_size", action="store_true")
  parser.add_argument("--rounds", type=int, default=7)
  options = parser.parse_args()
  if options.full_size:
    measure_full_size(options.rounds)
  if options.run:
    measure_run(options.run, options.rounds)


if __name__ == "__main__":
  main()
