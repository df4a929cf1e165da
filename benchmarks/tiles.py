"""Decoding by kl-f8 whole and in exact tiles: memory, time, difference.

  python benchmarks/tiles.py [--sides 1024,2048] [--time 1024] [--tile 512]
  python benchmarks/tiles.py --sides 2048 --time 2048 --dtypes float32
  python benchmarks/tiles.py --diffusers  # needs torch and diffusers

Compiles the full-size decoder for images of each side, prints the bytes that
the compiled program allocates, runs it where the side is one of --time, and
prints the table of benchmarks/tiles.md. The tiles run first: the peak resident
set of the process ("peak, GB") only grows, and is known for tiles alone with
one side, one format and compiled programs that are cached.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conv_stack.exact_tiles import decode_in_tiles

GIGABYTE = 1e9


def programs(autoencoder: Autoencoder, tile: int) -> dict[str, Callable]:
  """Decoding of latents, whole and in tiles."""

  def whole(variables: Any, latents: jax.Array) -> jax.Array:
    return autoencoder.apply(variables, latents, method="decode")

  def tiled(variables: Any, latents: jax.Array) -> jax.Array:
    return decode_in_tiles(autoencoder, variables, latents, tile=tile)

  return {f"tiles of {tile}": tiled, "whole": whole}


def random_variables(autoencoder: Autoencoder) -> Any:
  """Of variance 1 / fan-in; norms of scale 1."""
  image, latents = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 8, 8, 4))
  shapes = jax.eval_shape(autoencoder.init, jax.random.key(0), image, latents)
  rng = np.random.default_rng(0)

  def sample(leaf: Any) -> jax.Array:
    fan = np.prod(leaf.shape[:-1]) or 1
    values = rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan)
    return jnp.asarray(np.float32(values + (leaf.ndim == 1)))

  return jax.tree.map(sample, shapes)


def measure(side: int, dtype: str, tile: int, *, is_timed: bool) -> None:
  """Prints a row for the whole and one for the tiles."""
  autoencoder = Autoencoder(ConvStack(dtype=dtype))
  variables = random_variables(autoencoder)
  rng = np.random.default_rng(1)
  shape = 1, side // 8, side // 8, 4
  latents = jnp.asarray(rng.standard_normal(shape, np.float32))
  compiled, images, rows = {}, {}, {}
  for name, function in programs(autoencoder, tile).items():
    begin = time.perf_counter()
    compiled[name] = jax.jit(function).lower(variables, latents).compile()
    rows[name] = [f"{time.perf_counter() - begin:.0f}"]
  sizes = {
    name: program.memory_analysis().temp_size_in_bytes
    for name, program in compiled.items()
  }
  print(f"peak before, GB: {peak():.2f}", flush=True)
  for name, program in compiled.items():
    cells = ["-"] * 3
    if is_timed:
      cpu, wall = time.process_time(), time.perf_counter()
      images[name] = np.asarray(program(variables, latents))
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      cells = [f"{cpu:.0f}", f"{wall:.0f}", f"{peak():.2f}"]
    less = f"{sizes['whole'] / sizes[name]:.1f}"
    cells = [name, f"{sizes[name] / GIGABYTE:.2f}", less, *rows[name], *cells]
    print("|", " | ".join([str(side), dtype, *cells]), "|", flush=True)
  if images:
    tiled, whole = images.values()
    scale = np.abs(whole).max()
    print(f"largest difference {np.abs(tiled - whole).max() / scale:.1e} of 1")


def peak() -> float:
  """The largest resident set that the process has had, in GB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE


def compare_diffusers() -> None:
  """Prints how much `AutoencoderKL.enable_tiling` changes an image.

  Of width 32, 512 x 512 in tiles of 256, with random weights.
  """
  import torch
  from diffusers import AutoencoderKL

  torch.manual_seed(0)
  autoencoder = AutoencoderKL(
    block_out_channels=(32, 64, 128, 128),
    layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    sample_size=256,
  ).eval()
  latents = torch.randn(1, 4, 64, 64)
  with torch.no_grad():
    whole = autoencoder.decode(latents).sample
    autoencoder.enable_tiling()
    apart = (autoencoder.decode(latents).sample - whole).abs()
  scale = whole.abs().max()
  print(f"largest difference {apart.max() / scale:.2f} of 1")
  print(f"mean difference {apart.mean() / scale:.3f} of 1")


def main() -> None:
  """Measures every side and format."""
  parser = argparse.ArgumentParser()
  numbers = lambda text: [int(side) for side in text.split(",") if side]
  parser.add_argument("--sides", type=numbers, default=[1024, 2048])
  parser.add_argument("--time", type=numbers, default=[1024])
  parser.add_argument("--tile", type=int, default=512)
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--diffusers", action="store_true")
  options = parser.parse_args()
  if options.diffusers:
    compare_diffusers()
    return
  names = (
    "side, format, , GB, times less, compilation s, CPU s, wall s, peak GB"
  )
  print("|", " | ".join(names.split(", ")), "|")
  print("|" + "---|" * 9)
  for dtype in options.dtypes.split(","):
    for side in options.sides:
      measure(side, dtype, options.tile, is_timed=side in options.time)


if __name__ == "__main__":
  main()
