"""Regularizers of stage one on the built-in glyphs, and stage two after each.

  python benchmarks/regularizers.py NAME         trains stage one, and measures
  python benchmarks/regularizers.py NAME --two   stage two on its latents

NAME is plain, equivariant, aligned, or longer (plain in twice the steps). Runs
are in runs/regularizers; a run that is there is resumed. Each prints one line
of JSON. Results are in benchmarks/regularizers.md.
"""

import argparse
import dataclasses
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

import ldm_jax
from ldm_jax import config
from ldm_jax.evaluation.report import ReportRequest, report
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.pixels import to_float
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.training.first_stage.equivariance import EquivarianceRegularizer
from ldm_jax.training.first_stage.feature_alignment import FeatureAlignment

RUNS = os.path.join("runs", "regularizers")
RANDOM = FeatureAlignment(
  path="random", encoder=DinoV2(112, 14, width=192, depth=2, heads=3)
)
REGULARIZERS = {
  "plain": (),
  "longer": (),
  "equivariant": (EquivarianceRegularizer(),),
  "aligned": (RANDOM,),
}
COUNT, STEPS_TWO, SAMPLES = 128, 200, 256
SCALES, TURNS = (0.75, 0.5, 0.25), (1, 2, 3)


def stage_one(name):
  """The config of a first stage: the quickstart's, and a regularizer."""
  made = config.load("quickstart_autoencoder")
  task = dataclasses.replace(made.task, regularizers=REGULARIZERS[name])
  steps = made.steps * (2 if name == "longer" else 1)
  task = dataclasses.replace(
    task, optimizer=dataclasses.replace(task.optimizer, decay_steps=steps)
  )
  return dataclasses.replace(made, task=task, steps=steps)


def stage_two(name):
  """The quickstart's second stage in half of its steps."""
  made = config.load("quickstart_text")
  optimizer = dataclasses.replace(made.task.optimizer, decay_steps=STEPS_TWO)
  return dataclasses.replace(
    made,
    task=dataclasses.replace(made.task, optimizer=optimizer),
    steps=STEPS_TWO,
    checkpoints=dataclasses.replace(made.checkpoints, every=STEPS_TWO),
    first_stage=os.path.join(RUNS, name),
  )


def psnr(images, recon):
  """Mean PSNR [dB] of images in [-1, 1]."""
  error = jnp.square((images - jnp.clip(recon, -1, 1)) / 2)
  return float((-10 * jnp.log10(error.mean((1, 2, 3)))).mean())


def scaled(x, scale):
  shape = (len(x), *(round(scale * side) for side in x.shape[1:3]), x.shape[3])
  return jax.image.resize(x, shape, "linear", antialias=False)


def measured(folder):
  """PSNR of held-out images, and of transformed ones in two ways.

  `latents` is D(tau E(x)), `images` D(E(tau x)), both against tau x.
  """
  run, sharding = Run.open(folder), MeshShape().build(jax.devices()[:1])
  module, variables = run.experiment.task.autoencoder, run.trained(sharding)
  source = run.experiment.data.validation
  images = to_float(np.stack([source[i]["image"] for i in range(COUNT)]))
  encode = jax.jit(lambda x: module.apply(variables, x, method="encode").mode())
  decode = jax.jit(lambda z: module.apply(variables, z, method="decode"))
  latents = encode(images)
  found = {"psnr": psnr(images, decode(latents))}
  taus = {f"scale {s}": lambda x, s=s: scaled(x, s) for s in SCALES}
  for k in TURNS:
    taus[f"turn {90 * k}"] = lambda x, k=k: jnp.rot90(x, k, (1, 2))
  for name, tau in taus.items():
    target, moved = tau(images), tau(latents)
    own = encode(target)
    found[name] = {
      "latents": psnr(target, decode(moved)),
      "images": psnr(target, decode(own)),
      "difference": float(jnp.square(moved - own).mean() / latents.var()),
    }
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("name", choices=REGULARIZERS)
  parser.add_argument("--two", action="store_true")
  flags = parser.parse_args()
  folder, begun = os.path.join(RUNS, flags.name), time.process_time()
  if not flags.two:
    ldm_jax.train(stage_one(flags.name), folder)
    found = {"cpu_seconds": time.process_time() - begun} | measured(folder)
  else:
    second = os.path.join(RUNS, f"{flags.name}_text")
    ldm_jax.train(stage_two(flags.name), second)
    found = {"cpu_seconds": time.process_time() - begun}
    request = ReportRequest(model=second, out=f"{second}/report", num=SAMPLES)
    found |= report(request).metrics
  print(json.dumps({"name": flags.name, "two": flags.two, **found}))


if __name__ == "__main__":
  main()
