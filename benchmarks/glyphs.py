"""Trains one condition on the built-in glyphs and scores its samples.

  python benchmarks/glyphs.py class

trains configs/glyphs_class.py into runs/glyphs_class, and the first stage into
runs/glyphs_autoencoder if it does not exist; resumes when it is run again. It
prints one line of JSON and writes benchmarks/sheets/class.png. On two CPU cores
set XLA_FLAGS=--xla_force_host_platform_device_count=2, as `make show-class`
does.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

RUNS = "runs"
SHEETS = os.path.join("benchmarks", "sheets")
STAGE = os.path.join(RUNS, "glyphs_autoencoder")
TEXT = os.path.join(RUNS, "glyphs_text")

# Without guidance, noise added at each step corrects the errors of earlier
# steps.
UNGUIDED = ["--guidance=1", "--steps=100", "--eta=1"]

# By condition: the config, and names and flags of its reports.
SHOWS = {
  "text": ("text", {"": [], "unseen": ["--held_out"]}),
  "class": (
    "class",
    {
      "": [],
      **{f"w{w}": [f"--guidance={w}"] for w in (1, 2, 4, 8)},
      "null": ["--null", *UNGUIDED],
    },
  ),
  "dit": ("dit", {"": [], "null": ["--null", *UNGUIDED]}),
  "mmdit": ("mmdit", {"": [], "unseen": ["--held_out"]}),
  "segmentation": ("segmentation", {"": UNGUIDED}),
  "segmentation_tokens": ("segmentation_tokens", {"": UNGUIDED}),
  "layout": ("layout", {"": []}),
  "inpainting": ("inpainting", {"": UNGUIDED}),
  "upscaling": ("upscaling", {"": ["--guidance=1"]}),
  "text_and_mask": ("text_and_mask", {"": []}),
  "neighbours": ("neighbours", {"": []}),
  "unconditional": ("unconditional", {"": UNGUIDED}),
  "classifier": (
    "unconditional",
    {
      f"s{s}": [
        "--guidance=1",
        f"--classifier={RUNS}/glyphs_classifier",
        f"--classifier_scale={s}",
      ]
      for s in (0, 1, 2, 4, 8)
    },
  ),
  "velocity": ("velocity", {"": [], "unseen": ["--held_out"]}),
  "finetune": ("finetune", {"": []}),
  "lora": ("lora", {"": []}),
}
NEEDS = {  # configs that are trained first
  "classifier": ["classifier"],
  "finetune": ["text"],
  "lora": ["text"],
}


def call(module, *flags):
  """The last line of a command's stdout; stderr is passed through."""
  done = subprocess.run(
    [sys.executable, *module, *flags], stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    sys.exit(done.returncode)
  return done.stdout.strip().splitlines()[-1]


def train(config):
  """Seconds of training a config, and the run."""
  folder = os.path.join(RUNS, f"glyphs_{config}")
  flags = [f"--config=configs/glyphs_{config}.py", f"--workdir={folder}"]
  if config in ("finetune", "lora"):
    flags.append(f"--config.start={TEXT}")
  elif config != "autoencoder":
    flags.append(f"--config.first_stage={STAGE}")
  result = json.loads(call(["train.py"], *flags))
  return round(result["seconds"]), folder


def search():
  """Finds the neighbours of all examples, once."""
  folder = os.path.join(RUNS, "neighbours")
  if not os.path.exists(os.path.join(folder, "validation.npy")):
    call(
      ["-m", "ldm_jax", "retrieve"],
      "--config=configs/glyphs_neighbours.py",
      f"--encoder={STAGE}",
      f"--out={folder}",
    )


def main():
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument("show", choices=SHOWS)
  flags.add_argument("--num", type=int, default=512)
  flags.add_argument("--steps", type=int, default=25)
  flags.add_argument("--guidance", type=float, default=2.5)
  options = flags.parse_args()
  config, reports = SHOWS[options.show]
  train("autoencoder")
  if config == "neighbours":
    search()
  for needed in NEEDS.get(options.show, []):
    train(needed)
  seconds, run = train(config)
  line = {"show": options.show, "seconds": seconds, "samples": options.num}
  for name, extra in reports.items():
    out = os.path.join(run, "report" + (name and f"_{name}"))
    begun = time.monotonic()
    found = call(
      ["-m", "ldm_jax", "report"],
      f"--model={run}",
      f"--out={out}",
      f"--num={options.num}",
      f"--steps={options.steps}",
      f"--guidance={options.guidance}",
      *extra,
    )
    found = json.loads(found) | {
      "report_seconds": round(time.monotonic() - begun)
    }
    line |= found if not name else {name: found}
  os.makedirs(SHEETS, exist_ok=True)
  shown = "" if "" in reports else list(reports)[-1]
  out = os.path.join(run, "report" + (shown and f"_{shown}"))
  shutil.copy(
    os.path.join(out, "samples.png"),
    os.path.join(SHEETS, f"{options.show}.png"),
  )
  print(json.dumps(line))


if __name__ == "__main__":
  main()
