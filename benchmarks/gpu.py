"""Stable Diffusion 1.5 on an accelerator: training and sampling, bfloat16.

  python benchmarks/gpu.py [--batch 8] [--tiny]

This package and diffusers with torch.compile, on the same device in the same
run, one after the other in separate processes: a training step of the U-Net on
cached latents of 512 x 512 with AdamW, and 50 guided steps of DDIM decoded to
images. Random weights; the text encoder is left out. Prints a line of JSON per
library and job: images per second, model FLOPs utilisation where the device's
peak is known, and peak memory. --tiny tests the script on a CPU; its speed is
not meaningful. Results are in benchmarks/gpu.md.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np

STEPS, SCALE = 50, 7.5


def sizes(is_tiny):
  """(width of the U-Net, width of the autoencoder, side of the latents)."""
  return (32, 32, 8) if is_tiny else (320, 128, 64)


def timed(run, repeats):
  """Seconds of one call, after one that compiles; `run` is blocking."""
  run()
  began = time.perf_counter()
  for _ in range(repeats):
    run()
  return (time.perf_counter() - began) / repeats


def jax_jobs(options):
  """(job, images per second, mfu, peak bytes) of this package."""
  import jax
  import jax.numpy as jnp

  from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
  from ldm_jax.diffusion.samplers import SamplerConfig
  from ldm_jax.latent_diffusion import LatentDiffusion
  from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
  from ldm_jax.nn.conditioners.spatial import NeighbourEmbeddings
  from ldm_jax.nn.unet import UNet
  from ldm_jax.runtime.devices.sharding import MeshShape
  from ldm_jax.runtime.monitoring import flops
  from ldm_jax.runtime.optimizer import Optimizer
  from ldm_jax.sampling.engine import SamplingEngine
  from ldm_jax.sampling.sampling_config import (
    Conditioning,
    GenerationInputs,
    SamplingConfig,
  )
  from ldm_jax.training.compiled_steps import CompiledTask
  from ldm_jax.training.denoiser import DenoiserTask

  wide, narrow, side = sizes(options.tiny)
  device = jax.devices()[0]
  model = LatentDiffusion(
    first_stage=Autoencoder(ConvStack(narrow, dtype="bfloat16")),
    unet=UNet(channels=wide, dtype="bfloat16"),
    conditioners=(NeighbourEmbeddings(768),),
  )
  task = DenoiserTask(model, Optimizer(rate=1e-4))
  sharding = MeshShape().build(jax.devices()[:1])
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  batch = sharding.put_batch(
    {
      "moments": normal(options.batch, side, side, 8),
      "neighbours": normal(options.batch, 77, 768),
    }
  )
  shapes = task.frozen_shapes(batch)
  values = jax.tree.map(lambda s: 0.02 * normal(*s.shape), shapes)
  frozen = jax.device_put(values, sharding.replicated)
  frozen = frozen.replace(latent_scale=jnp.float32(0.18215))
  programs = CompiledTask(task, sharding, 0, frozen, batch)
  state = [programs.init(batch)]

  def train():
    state[0], metrics = programs.step(state[0], batch)
    jax.block_until_ready(metrics)

  peak = flops.peak(device.device_kind)
  used = lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")
  seconds = timed(train, options.repeats)
  mfu = programs.work() / seconds / peak if peak else None
  yield "train", options.batch / seconds, mfu, used()
  params = task.parameters(state[0].ema, frozen)
  params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
  params = params.replace(latent_scale=frozen.latent_scale)
  state.clear()
  pixels = side * model.first_stage.stride
  settings = SamplingConfig(
    pixels,
    pixels,
    SamplerConfig(steps=STEPS),
    guidance=ClassifierFreeGuidance(SCALE),
  )
  raw = {"neighbours": normal(options.batch, 77, 768)}
  conditioning = lambda is_null: Conditioning(
    raw, {"neighbours": np.full(options.batch, is_null)}
  )
  engine = SamplingEngine(model, params, sharding)
  inputs = GenerationInputs(count=options.batch, batch=options.batch)

  def sample():
    list(
      engine.generate(settings, conditioning(False), conditioning(True), inputs)
    )

  seconds = timed(sample, max(1, options.repeats // 5))
  yield "sample", options.batch / seconds, None, used()


def torch_jobs(options):
  """The same of diffusers."""
  import torch
  from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

  wide, narrow, side = sizes(options.tiny)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  widths = lambda width: tuple(width * n for n in (1, 2, 4, 4))
  unet = UNet2DConditionModel(
    block_out_channels=widths(wide),
    cross_attention_dim=768,
    attention_head_dim=8,
  ).to(device)
  first_stage = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=widths(narrow),
    layers_per_block=2,
  )
  optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, fused=device == "cuda")
  normal = lambda *shape: torch.randn(shape, device=device)
  x0, context = (
    normal(options.batch, 4, side, side),
    normal(options.batch, 77, 768),
  )
  scheduler = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
  )
  half = lambda: torch.autocast(device, torch.bfloat16)
  wait = torch.cuda.synchronize if device == "cuda" else lambda: None
  used = lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None
  fast = unet if options.tiny else torch.compile(unet)

  def train():
    noise, t = torch.randn_like(x0), torch.randint(1000, (options.batch,))
    xt = scheduler.add_noise(x0, noise, t.to(device))
    with half():
      output = fast(xt, t.to(device), context).sample
    ((output.float() - noise) ** 2).mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    wait()

  yield "train", options.batch / timed(train, options.repeats), None, used()
  del optimizer
  sampler = unet.to(torch.bfloat16).eval()
  sampler = sampler if options.tiny else torch.compile(sampler)
  decode = first_stage.to(device, torch.bfloat16).eval().decode
  decode = decode if options.tiny else torch.compile(decode)

  @torch.no_grad()
  def sample():
    scheduler.set_timesteps(STEPS)
    x = torch.randn_like(x0).to(torch.bfloat16)
    both = torch.cat([torch.zeros_like(context), context]).to(torch.bfloat16)
    for t in scheduler.timesteps:
      no, yes = sampler(torch.cat([x, x]), t, both).sample.chunk(2)
      x = scheduler.step(no + SCALE * (yes - no), t, x).prev_sample
    decode(x / 0.18215).sample.float().cpu()

  seconds = timed(sample, max(1, options.repeats // 5))
  yield "sample", options.batch / seconds, None, used()


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--batch", type=int, default=8)
  flags.add_argument("--repeats", type=int, default=20)
  flags.add_argument("--tiny", action="store_true")
  flags.add_argument("--only", choices=("jax", "torch"), help="in this process")
  options = flags.parse_args()
  if options.only is None:
    for library in ("jax", "torch"):
      more = [*sys.argv[1:], f"--only={library}"]
      subprocess.run([sys.executable, __file__, *more], check=True)
    return
  jobs = {"jax": jax_jobs, "torch": torch_jobs}[options.only]
  for job, speed, mfu, peak in jobs(options):
    line = {"library": options.only, "job": job, "batch": options.batch}
    line["images_per_second"] = round(speed, 3)
    line["mfu"] = mfu and round(mfu, 3)
    line["peak_gib"] = peak and round(peak / 2**30, 2)
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
