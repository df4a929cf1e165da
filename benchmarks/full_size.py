"""Stable Diffusion 1.5 at full size on a CPU: load, one guided step, decode.

  python benchmarks/full_size.py [--dtype float32|bfloat16]

No real weights are needed: a single file with random numbers under the real
names and in the real shapes (half precision, 2.1 GB) is written to a temporary
folder first. Prints one line of JSON: seconds and peak memory of each part.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

GIGABYTE = 2**30


def write(path: str) -> None:
  """Writes the file, without a model in memory."""
  import jax
  import jax.numpy as jnp

  from ldm_jax.nn.autoencoder import Autoencoder
  from ldm_jax.nn.conditioners.embedders import Condition
  from ldm_jax.nn.encoders.clip_text import ClipText
  from ldm_jax.nn.unet import UNet
  from ldm_jax.weights.naming import convert, parameter_names
  from ldm_jax.weights.safetensors_files import write_safetensors

  key, latents = jax.random.key(0), jnp.zeros((1, 64, 64, 4))
  condition = Condition(context=jnp.zeros((1, 77, 768)))
  ids, image = jnp.zeros((1, 77), jnp.int32), jnp.zeros((1, 64, 64, 3))
  parts = {
    ("model.diffusion_model.", "unet"): lambda: UNet().init(
      key, latents, jnp.zeros((1,)), condition
    ),
    ("first_stage_model.", "autoencoder"): lambda: Autoencoder().init(
      key, image, latents[:, :8, :8]
    ),
    ("cond_stage_model.transformer.text_model.", "clip"): (
      lambda: ClipText().init(key, ids)
    ),
  }
  rng, tensors = np.random.default_rng(0), {}
  for (prefix, network), init in parts.items():
    shapes = convert.shapes(jax.eval_shape(init)["params"])
    for row in parameter_names.name_table(network, "compvis", shapes).rows:
      shape = row.foreign_shape()
      fan = math.prod(shape[1:]) or 1
      values = rng.standard_normal(shape, np.float32) / math.sqrt(fan)
      tensors[prefix + row.foreign_name] = values.astype(np.float16)
  write_safetensors(path, tensors)


def measure(path: str, dtype: str) -> None:
  """Loads the file and uses it; prints time and memory."""
  import jax
  import jax.numpy as jnp

  import ldm_jax
  from ldm_jax.diffusion import samplers
  from ldm_jax.diffusion.guidance import ClassifierFreeGuidance

  report, clock = {"dtype": dtype}, time.perf_counter()

  def note(name: str) -> None:
    nonlocal clock
    report[f"{name}_seconds"] = round(time.perf_counter() - clock, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report[f"{name}_peak_gigabytes"] = round(peak / GIGABYTE, 2)
    clock = time.perf_counter()

  model, params = ldm_jax.from_single_file(path, dtype=dtype)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  report["parameter_gigabytes"] = round(size / GIGABYTE, 2)
  note("load")
  ids = jnp.full((1, 1, 77), 49407, jnp.int32).at[:, :, 0].set(49406)
  encode = jax.jit(model.condition)
  condition = encode(params, {"tokens": ids}, {"tokens": jnp.zeros((1,), bool)})
  program = samplers.SamplerConfig(final_time=0.0).plan(model.schedule).program
  row = jax.tree.map(lambda x: x[:1], program)
  keys = jax.random.split(jax.random.key(1), 1)

  @jax.jit
  def step(params, xt):
    denoise = model.guided_denoiser(
      params, condition, condition, ClassifierFreeGuidance(7.5)
    )
    return samplers.sample(denoise, xt, row, keys)

  xt = step(params, jax.random.normal(jax.random.key(0), (1, 64, 64, 4)))
  report["step_is_finite"] = bool(jnp.isfinite(xt).all())
  note("guided_step_with_compilation")
  step(params, xt).block_until_ready()
  note("guided_step")
  image = jax.jit(model.decode)(params, xt)
  report["image"] = list(image.shape)
  report["image_is_finite"] = bool(jnp.isfinite(image).all())
  note("decode_with_compilation")
  print(json.dumps(report))


def main() -> None:
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument("--dtype", default="float32")
  flags.add_argument("--file", help=argparse.SUPPRESS)
  given = flags.parse_args()
  if given.file:
    measure(given.file, given.dtype)
    return
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "sd15.safetensors")
    write(path)
    again = [sys.executable, __file__, "--dtype", given.dtype, "--file", path]
    subprocess.run(again, check=True)


if __name__ == "__main__":
  main()
