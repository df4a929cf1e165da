"""Speed of stage two with and without cached latents.

  python benchmarks/latents.py [--steps 60]

Stage one has kl-f8's shape at a quarter of its width, fresh, on images of
128 x 128 (scikit-image's, downscaled and packed); stage two is a U-Net of the
glyphs' width on its 16 x 16 latents, batch 16. Both run through train.py.
Prints one line of JSON.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

CONFIG = """
import dataclasses
import pathlib

import skimage

from ldm_jax.config import Data, Experiment, PerceptualWeights, Reports
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.denoiser import DenoiserTask

STAGE_ONE = {is_first}


def get_config():
  root = str(pathlib.Path(skimage.__file__).parent / "data")
  photos = Folder(root, only=("astronaut.png", "chelsea.png", "coffee.png"))
  data = Data(photos, photos, Augment(128, scale=(0.5, 1.0)), batch=16,
              held_out=3, threads=2)
  if STAGE_ONE:
    task = AutoencoderTask(Autoencoder(ConvStack(32)), perceptual=None)
  else:
    plan = AttentionPlan((0, 1), heads=4, kind="plain")
    unet = UNet(4, 48, (1, 2), 1, plan, groups=12)
    task = DenoiserTask(LatentDiffusion(unet=unet), latent_scale=1.0)
  return Experiment(task, data, steps={steps},
                    reports=Reports(every=10, previews_every=0))
"""


def call(*flags):
  subprocess.run([sys.executable, *flags], check=True, stdout=subprocess.PIPE)


def steps_a_second(folder):
  """The median of metrics.jsonl, without the first lines."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rates = [json.loads(line).get("images_per_second") for line in lines]
  return statistics.median([rate for rate in rates if rate][2:]) / 16


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--steps", type=int, default=80)
  options = flags.parse_args()
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    for stage, steps in (("one", 1), ("two", options.steps)):
      text = CONFIG.format(is_first=stage == "one", steps=steps)
      (root / f"{stage}.py").write_text(text)
    two = f"--config={root / 'two.py'}"
    call("train.py", f"--config={root / 'one.py'}", f"--workdir={root / 'one'}")
    prepare = [f"--first_stage={root / 'one'}", f"--out={root / 'latents'}"]
    call("-m", "ldm_jax", "prepare", two, *prepare, "--copies=100")
    found = {}
    for run, more in (
      ("without", []),
      ("with", [f"--config.data.latents={root / 'latents'}"]),
    ):
      stage = f"--config.first_stage={root / 'one'}"
      call("train.py", two, f"--workdir={root / run}", stage, *more)
      found[run] = steps_a_second(root / run)
  found["ratio"] = found["with"] / found["without"]
  print(json.dumps({n: round(value, 3) for n, value in found.items()}))


if __name__ == "__main__":
  main()
