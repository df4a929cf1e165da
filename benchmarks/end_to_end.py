"""Images per second, from the prompt to pixels, here and in diffusers.

  python benchmarks/end_to_end.py [--rounds 5] [--side 256] [--width 128]

A model of Stable Diffusion 1's architecture with random weights and the given
width (SD 1's is 320), written by diffusers as a folder that both open: 20
guided steps of DDIM at one prompt, text encoder and decoder included. Two
processes take turns, so that load on the machine affects both. Prints one line
of JSON: median wall and CPU seconds of an image, and diffusers' over ours.
Needs torch and diffusers (pip install torch diffusers). Results are in
benchmarks/sampling.md.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

PROMPT, STEPS, GUIDANCE = "a red fox in the snow", 20, 7.5


def write_model(folder, width, side):
  """A random Stable Diffusion of a width, by diffusers."""
  import diffusers
  import torch
  from transformers import CLIPTextConfig, CLIPTextModel

  torch.manual_seed(0)
  tokenizer = write_tokenizer(folder)
  widths = (width, 2 * width, 4 * width, 4 * width)
  unet = diffusers.UNet2DConditionModel(
    block_out_channels=widths,
    cross_attention_dim=256,
    sample_size=side // 8,
  )
  halves = tuple(max(32, w // 2) for w in widths)
  vae = diffusers.AutoencoderKL(
    block_out_channels=halves,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=side,
  )
  text = CLIPTextModel(
    CLIPTextConfig(
      vocab_size=len(tokenizer),
      hidden_size=256,
      intermediate_size=1024,
      num_hidden_layers=12,
      num_attention_heads=4,
      bos_token_id=tokenizer.bos_token_id,
      eos_token_id=tokenizer.eos_token_id,
    )
  )
  scheduler = diffusers.DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
  )
  pipeline = diffusers.StableDiffusionPipeline(
    vae, text, tokenizer, unet, scheduler, None, None, None, False
  )
  pipeline.save_pretrained(folder)


def write_tokenizer(folder):
  """A tokenizer of letters."""
  from transformers import CLIPTokenizer

  letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
  words = [*letters, *(f"{each}</w>" for each in letters)]
  words += ["<|startoftext|>", "<|endoftext|>"]
  own = pathlib.Path(folder) / "words"
  own.mkdir()
  ids = {word: i for i, word in enumerate(words)}
  (own / "vocab.json").write_text(json.dumps(ids))
  (own / "merges.txt").write_text("#version: 0.2\n")
  return CLIPTokenizer(
    str(own / "vocab.json"), str(own / "merges.txt"), model_max_length=77
  )


def ours(folder, side):
  """A function that makes one image."""
  import ldm_jax

  pipeline = ldm_jax.Pipeline.from_pretrained(folder)
  settings = {"prompt": PROMPT, "steps": STEPS, "guidance": GUIDANCE}
  settings |= {"height": side, "width": side}
  return lambda seed: pipeline(**settings, seed=seed).images


def theirs(folder, side):
  """The same by diffusers."""
  import diffusers
  import torch

  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
    folder, safety_checker=None
  )
  pipeline.set_progress_bar_config(disable=True)
  return lambda seed: (
    pipeline(
      PROMPT,
      num_inference_steps=STEPS,
      guidance_scale=GUIDANCE,
      height=side,
      width=side,
      generator=torch.Generator().manual_seed(seed),
    ).images
  )


def work(name, folder, side):
  """Makes an image for every line that is read; the first one compiles."""
  make = {"ours": ours, "diffusers": theirs}[name](folder, side)
  for line in sys.stdin:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu, wall = usage.ru_utime + usage.ru_stime, time.perf_counter()
    make(int(line))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = usage.ru_utime + usage.ru_stime - cpu
    print("done", time.perf_counter() - wall, spent, flush=True)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--rounds", type=int, default=5)
  flags.add_argument("--side", type=int, default=256)
  flags.add_argument("--width", type=int, default=128)
  flags.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
  options = flags.parse_args()
  if options.work:
    work(*options.work, options.side)
    return
  with tempfile.TemporaryDirectory() as folder:
    write_model(folder, options.width, options.side)
    workers, found = {}, {}
    for name in ("ours", "diffusers"):
      command = [sys.executable, __file__, f"--side={options.side}"]
      workers[name] = subprocess.Popen(
        [*command, "--work", name, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
      found[name] = []
    for number in range(1 + options.rounds):
      for name, worker in workers.items():
        print(number, file=worker.stdin, flush=True)
        line = ""
        while not line.startswith("done"):
          line = worker.stdout.readline()
          if not line:
            sys.exit(f"{name} ended")
        found[name].append(tuple(map(float, line.split()[1:])))
    for worker in workers.values():
      worker.stdin.close()
      worker.wait()
  report = {"side": options.side, "width": options.width, "steps": STEPS}
  for i, what in enumerate(("seconds", "cpu_seconds")):
    each = {
      name: statistics.median(row[i] for row in rows[1:])
      for name, rows in found.items()
    }
    report |= {f"{name}_{what}": round(x, 3) for name, x in each.items()}
    report[f"times_the_rate_{what}"] = round(
      each["diffusers"] / each["ours"], 3
    )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
