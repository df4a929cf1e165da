"""Stable Diffusion 1.5 and XL on an accelerator: training and sampling.

  python benchmarks/gpu.py [--minutes 10] [--tiny]

This package and diffusers with torch.compile, on the same device in the same
run, one after the other in separate processes, bfloat16: a training step of the
U-Net on cached latents (512 x 512, XL's 1024 x 1024) with AdamW, and 50 guided
steps of DDIM decoded to images. Random weights; the text encoders are left out,
and of XL's vector only the sizes remain. This package runs once with its own
choice of attention (cuDNN's flash attention on a GPU), once with XLA's, and
once with tokamax's if it is installed. Prints a line of JSON per library,
model, attention and job: images per second, model FLOPs utilisation where the
device's peak is known, and peak memory. The minutes are divided equally
among the processes; one that needs more is ended, which a line says. --tiny
tests the script on a CPU; its speed is not meaningful. Results are in
benchmarks/gpu.md.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time

import numpy as np

STEPS, SCALE = 50, 7.5
MODELS = {"sd15": 8, "sdxl": 2}  # images of a batch
SIZES = [1024, 1024, 0, 0, 1024, 1024]  # XL's micro-conditioning


def sizes(options):
  """(width of the U-Net, width of the autoencoder, side of the latents)."""
  if options.tiny:
    return 32 * (2 if options.model == "sdxl" else 1), 32, 8
  return 320, 128, 128 if options.model == "sdxl" else 64


def steps(options):
  return 2 if options.tiny else STEPS


def attention_backend(name):
  """An `attention_backend` of the package's networks."""
  if name != "tokamax":
    return name
  import tokamax

  return tokamax.dot_product_attention


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
  from ldm_jax.nn.conditioners.embedders import SizeEmbedder
  from ldm_jax.nn.conditioners.spatial import NeighbourEmbeddings
  from ldm_jax.nn.transformer import AttentionPlan
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

  wide, narrow, side = sizes(options)
  device = jax.devices()[0]
  is_xl = options.model == "sdxl"
  features = 2048 if is_xl else 768
  plan = AttentionPlan()
  if is_xl:
    plan = AttentionPlan(
      depths=(0, 2, 10), mid_depth=10, heads=None, head_width=64, is_linear=True
    )
  unet = UNet(
    channels=wide,
    multipliers=(1, 2, 4) if is_xl else (1, 2, 4, 4),
    attention=plan,
    vector="mlp" if is_xl else None,
    attention_backend=attention_backend(options.attention),
    dtype="bfloat16",
  )
  conditioners = (NeighbourEmbeddings(features),)
  if is_xl:
    conditioners = (*conditioners, SizeEmbedder())
  model = LatentDiffusion(
    first_stage=Autoencoder(ConvStack(narrow, dtype="bfloat16")),
    unet=unet,
    conditioners=conditioners,
  )
  task = DenoiserTask(model, Optimizer(rate=1e-4))
  sharding = MeshShape().build(jax.devices()[:1])
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  raw = {"neighbours": normal(options.batch, 77, features)}
  if is_xl:
    raw["sizes"] = np.tile(np.float32(SIZES), (options.batch, 1))
  batch = sharding.put_batch(
    {"moments": normal(options.batch, side, side, 8), **raw}
  )
  shapes = task.frozen_shapes(batch)
  values = jax.tree.map(lambda s: 0.02 * normal(*s.shape), shapes)
  frozen = jax.device_put(values, sharding.replicated)
  frozen = frozen.replace(latent_scale=jnp.float32(0.18215))
  programs = CompiledTask(task, sharding, 0, frozen, batch)
  # Compiling the initialisation of XL's kernels takes a CPU three minutes.
  numbers = 0.02 * normal(2**20)
  start = jax.tree.map(
    lambda leaf: np.resize(numbers, leaf.shape), programs.shapes.params
  )
  start = jax.device_put(start, programs.shardings.params)
  state = [programs.init_from(batch, start)]

  def train():
    state[0], metrics = programs.step(state[0], batch)
    jax.block_until_ready(metrics)

  peak = flops.peak(device.device_kind)
  used = lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")
  seconds = timed(train, options.repeats)
  mfu = programs.work(batch) / seconds / peak if peak else None
  yield "train", options.batch / seconds, mfu, used()
  params = task.parameters(state[0].ema, frozen)
  params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
  params = params.replace(latent_scale=frozen.latent_scale)
  state.clear()
  pixels = side * model.first_stage.stride
  settings = SamplingConfig(
    pixels,
    pixels,
    SamplerConfig(steps=steps(options)),
    guidance=ClassifierFreeGuidance(SCALE),
  )
  conditioning = lambda is_null: Conditioning(
    raw, {key: np.full(options.batch, is_null) for key in raw}
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

  wide, narrow, side = sizes(options)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  widths = lambda width: tuple(width * n for n in (1, 2, 4, 4))
  is_xl = options.model == "sdxl"
  features = 2048 if is_xl else 768
  xl = {
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256,
  }
  # What diffusers calls attention_head_dim is the number of heads here.
  unet = UNet2DConditionModel(
    block_out_channels=widths(wide)[: 3 if is_xl else 4],
    cross_attention_dim=features,
    attention_head_dim=(
      tuple(width // 64 for width in widths(wide)[:3]) if is_xl else 8
    ),
    **(xl if is_xl else {}),
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
    normal(options.batch, 77, features),
  )

  def added(copies):
    if not is_xl:
      return {}
    count = copies * options.batch
    ids = torch.tensor([SIZES] * count, dtype=torch.float32, device=device)
    return {
      "added_cond_kwargs": {
        "text_embeds": torch.zeros(count, 0, device=device),
        "time_ids": ids,
      }
    }

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
      output = fast(xt, t.to(device), context, **added(1)).sample
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
    scheduler.set_timesteps(steps(options))
    x = torch.randn_like(x0).to(torch.bfloat16)
    both = torch.cat([torch.zeros_like(context), context]).to(torch.bfloat16)
    for t in scheduler.timesteps:
      output = sampler(torch.cat([x, x]), t, both, **added(2)).sample
      no, yes = output.chunk(2)
      x = scheduler.step(no + SCALE * (yes - no), t, x).prev_sample
    decode(x / 0.18215).sample.float().cpu()

  seconds = timed(sample, max(1, options.repeats // 5))
  yield "sample", options.batch / seconds, None, used()


def run_all(options):
  """Every library, model and attention in a process of its own."""
  names = ["auto", "xla"]
  if importlib.util.find_spec("tokamax"):
    names.append("tokamax")
  runs = [
    (library, model, attention)
    for model in options.models
    for library, attention in [("torch", "auto"), *(("jax", n) for n in names)]
    if library in options.libraries
  ]
  share = options.minutes * 60 / len(runs)
  for library, model, attention in runs:
    command = [sys.executable, __file__, f"--repeats={options.repeats}"]
    command += ["--only", library, model, attention]
    command += ["--tiny"] * options.tiny
    what = {"library": library, "model": model, "attention": attention}
    try:
      code = subprocess.run(command, timeout=share).returncode
    except subprocess.TimeoutExpired:
      code = f"ended after {share:.0f} s"
    if code:
      print(json.dumps(what | {"failed": code}), flush=True)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--minutes", type=float, default=10)
  flags.add_argument("--repeats", type=int, default=20)
  flags.add_argument("--models", nargs="*", default=list(MODELS))
  flags.add_argument("--libraries", nargs="*", default=["jax", "torch"])
  flags.add_argument("--tiny", action="store_true")
  flags.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
  options = flags.parse_args()
  if options.only is None:
    run_all(options)
    return
  library, options.model, options.attention = options.only
  options.batch = 1 if options.tiny else MODELS[options.model]
  jobs = {"jax": jax_jobs, "torch": torch_jobs}[library]
  for job, speed, mfu, peak in jobs(options):
    line = {"library": library, "model": options.model}
    line |= {"attention": options.attention, "job": job}
    line["batch"] = options.batch
    line["images_per_second"] = round(speed, 3)
    line["mfu"] = mfu and round(mfu, 3)
    line["peak_gib"] = peak and round(peak / 2**30, 2)
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
