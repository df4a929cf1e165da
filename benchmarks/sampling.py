"""Images per second: one scan in chunks, a loop over a jitted step, diffusers.

  python benchmarks/sampling.py [--batch 4] [--side 32] [--channels 64]

The same small U-Net with Stable Diffusion's architecture, random weights, 50
guided steps of DDIM, all in one run on one machine. diffusers takes part where
torch and it are installed (pip install torch diffusers), and must give the same
latents. Prints one line of JSON.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import ldm_jax
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.unet import AttentionPlan, UNet

STEPS, SCALE, TOKENS, WIDTH = 50, 7.5, 77, 256


def timed(function, repeats=3):
  """Median seconds after one run that compiles, and the result."""
  result = function()
  seconds = []
  for _ in range(repeats):
    began = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds), result


def network(channels, side):
  """A U-Net of three levels, all parameters random."""
  unet = UNet(
    4, channels, (1, 2, 4), 1, AttentionPlan((1, 1, 0), heads=4), groups=16
  )
  condition = Condition(context=jnp.zeros((1, TOKENS, WIDTH)))
  variables = jax.jit(unet.init)(
    jax.random.key(0), jnp.zeros((1, side, side, 4)), jnp.zeros((1,)), condition
  )
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(1)
  values = [x + 0.02 * rng.standard_normal(x.shape, np.float32) for x in leaves]
  return unet, jax.tree.unflatten(tree, values)


def ours(model, params, noise, contexts):
  """{name: function}: in chunks, in one scan, and step by step from Python."""
  sampler_config = samplers.SamplerConfig(STEPS, final_time=0.0)
  program = sampler_config.plan(model.schedule).program
  keys = jax.random.split(jax.random.key(0), len(noise))
  negative, positive = (Condition(context=each) for each in contexts)

  @jax.jit
  def run(params, state, piece):
    denoise = model.guided_denoiser(
      params, negative, positive, ClassifierFreeGuidance(SCALE)
    )
    return samplers.run(denoise, state, piece, keys)

  def chunked(length, is_awaited=False):
    state = samplers.init_registers(noise)
    for piece in samplers.split_table(program, length):
      state = run(params, state, piece)
      if is_awaited:
        state.block_until_ready()
    return np.asarray(state[0])

  return {
    "chunks": lambda: chunked(samplers.CHUNK_ROWS),
    "one_scan": lambda: chunked(STEPS),
    "python_loop": lambda: chunked(1, is_awaited=True),
  }


def theirs(unet, variables, noise, contexts):
  """diffusers' U-Net and scheduler in their own loop, or None."""
  try:
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel
  except ImportError:
    return None
  with tempfile.TemporaryDirectory() as folder:
    ldm_jax.save_pretrained(unet, variables, f"{folder}/unet")
    module = UNet2DConditionModel.from_pretrained(f"{folder}/unet").eval()
  scheduler = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
  )
  both = torch.tensor(np.concatenate(contexts))
  start = torch.tensor(np.asarray(noise)).movedim(-1, 1)

  @torch.no_grad()
  def run():
    scheduler.set_timesteps(STEPS)
    x = start
    for t in scheduler.timesteps:
      output = module(torch.cat([x, x]), t, both).sample
      no, yes = output.chunk(2)
      x = scheduler.step(no + SCALE * (yes - no), t, x).prev_sample
    return x.movedim(1, -1).numpy()

  return run


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--batch", type=int, default=4)
  flags.add_argument("--side", type=int, default=32)
  flags.add_argument("--channels", type=int, default=64)
  options = flags.parse_args()
  unet, variables = network(options.channels, options.side)
  model = dataclasses.replace(LatentDiffusion(), unet=unet)
  params = Parameters(None, jnp.float32(1), {}, variables)
  rng = np.random.default_rng(2)
  shape = (options.batch, options.side, options.side, 4)
  noise = jnp.asarray(rng.standard_normal(shape, np.float32))
  contexts = rng.standard_normal((2, options.batch, TOKENS, WIDTH), np.float32)
  report, results = {**vars(options), "steps": STEPS}, {}
  runs = ours(model, params, noise, contexts)
  if (run := theirs(unet, variables, noise, contexts)) is not None:
    runs["diffusers"] = run
  for name, run in runs.items():
    seconds, results[name] = timed(run)
    report[f"{name}_images_per_second"] = round(options.batch / seconds, 4)
  whole = options.batch / report["one_scan_images_per_second"]
  chunks = options.batch / report["chunks_images_per_second"]
  report["host_overhead_percent"] = round(100 * (chunks / whole - 1), 2)
  report["dispatches"] = -(-STEPS // samplers.CHUNK_ROWS)
  scale = np.abs(results["chunks"]).max()
  for name, result in results.items():
    error = np.abs(result - results["chunks"]).max() / scale
    report[f"{name}_difference"] = float(f"{error:.1e}")
  print(json.dumps(report))


if __name__ == "__main__":
  main()
