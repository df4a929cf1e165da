"""Stage two after a first stage that is aligned to a trained encoder.

  python benchmarks/aligned.py [--arms plain,aligned,...] [--seeds 0,1]

The built-in glyphs throughout. A small DINOv2 learns their labels and is
written as a folder of transformers' format; first stages are trained with and
without regularizers, aligned to that folder; and the text model on the latents
of each, at a constant learning rate, is scored at several numbers of steps.
All is in runs/aligned; what is there is not computed again. Each measurement is
one line of runs/aligned/measured.jsonl, and the tables of
benchmarks/regularizers.md are printed. Two seeds of two arms take half an hour
of CPU time.
"""

import argparse
import dataclasses
import itertools
import json
import os
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ldm_jax
from ldm_jax import config
from ldm_jax.data import batching
from ldm_jax.data.glyphs.source import (
  ATTRIBUTES,
  BACKGROUNDS,
  COLOURS,
  POSITIONS,
  SHAPES,
  SIZES,
  TEXTURES,
  Glyphs,
)
from ldm_jax.evaluation.report import ReportRequest, report
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.pixels import to_float
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.first_stage.equivariance import EquivarianceRegularizer
from ldm_jax.training.first_stage.feature_alignment import FeatureAlignment

RUNS = os.path.join("runs", "aligned")
FOLDER = os.path.join(RUNS, "encoder")
MEASURED = os.path.join(RUNS, "measured.jsonl")

# 64 patches of 4 x 4 pixels: as many as there are latents.
ENCODER = DinoV2(32, 4, width=96, depth=4, heads=3)
KINDS = (SHAPES, COLOURS, TEXTURES, SIZES, POSITIONS, BACKGROUNDS)
TAUGHT, BATCH, HELD_OUT = 500, 64, 512  # of the encoder
ARMS = {
  "plain": (),
  "aligned": (FeatureAlignment(path=FOLDER, encoder=ENCODER),),
  "random": (FeatureAlignment(path="random", encoder=ENCODER),),
  "equivariant": (EquivarianceRegularizer(),),
}
STEPS, SAMPLES = (160, 240, 320), 512  # of stage two
SCORES = ("colour", "position", "texture", "shape", "all")


class Labelled(nn.Module):
  """Logits of the six attributes, and of the object in every patch."""

  encoder: DinoV2

  @nn.compact
  def __call__(self, images):
    found = self.encoder(images)
    attributes = [nn.Dense(len(each))(found.class_token) for each in KINDS]
    return attributes, nn.Dense(1 + len(SHAPES))(found.patches)


def labels_of(batch):
  """Indices of the attributes, and of the object that a patch has pixels of."""
  side, patch = ENCODER.size // ENCODER.patch, ENCODER.patch
  cut = batch["segmap"].reshape(-1, side, patch, side, patch)
  return batch["attributes"].T, cut.max((2, 4)).astype(np.int32)


def teach():
  """Trains the encoder on labels and writes it as transformers' folder.

  The loss is the mean cross-entropy of the attributes from the class token,
  and that of the patches' objects from the patches.
  """
  module, begun = Labelled(ENCODER), time.process_time()
  optimizer = Optimizer(
    rate=2e-3,
    betas=(0.9, 0.99),
    warmup=50,
    decay="cosine",
    decay_steps=TAUGHT,
    muon=1e-2,
  ).build()
  both = Glyphs(palette="both")
  stream = batching.batches(both, batch=BATCH, seed=0, threads=2)
  params = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  scales = ("scale1", "scale2")  # 1e-5 is for networks far deeper than this
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.ones_like(x) if path[-1].key in scales else x, params
  )

  def loss(params, images, attributes, patches):
    logits, objects = module.apply({"params": params}, to_float(images))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    pairs = zip(logits, attributes, strict=True)
    whole = sum(entropy(*pair).mean() for pair in pairs) / len(KINDS)
    return whole + entropy(objects, patches).mean()

  @jax.jit
  def step(params, state, *batch):
    value, grads = jax.value_and_grad(loss)(params, *batch)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  state = optimizer.init(params)
  for i in range(TAUGHT):
    batch = next(stream)
    params, state, value = step(
      params, state, batch["image"], *labels_of(batch)
    )
    if (i + 1) % 100 == 0:
      print(f"encoder: step {i + 1}, loss {value:.3f}", flush=True)
  variables = {"params": params["encoder"]}
  ldm_jax.save_pretrained(ENCODER, variables, FOLDER)
  held_out = Glyphs(split="validation", palette="both", size=HELD_OUT)
  batch = batching.first(held_out, HELD_OUT)
  logits, objects = module.apply({"params": params}, to_float(batch["image"]))
  attributes, patches = labels_of(batch)
  right = np.stack([each.argmax(-1) for each in logits]) == attributes
  scores = dict(zip(ATTRIBUTES, right.mean(1).tolist(), strict=True))
  scores["patches"] = float((objects.argmax(-1) == patches).mean())
  keep("encoder", cpu=time.process_time() - begun, **scores)


def stage_one(arm, seed):
  """Trains the quickstart's first stage with the arm's regularizers."""
  made, begun = config.load("quickstart_autoencoder"), time.process_time()
  task = dataclasses.replace(made.task, regularizers=ARMS[arm])
  made = dataclasses.replace(made, task=task, seed=seed)
  metrics = ldm_jax.train(made, folder(arm, seed)).metrics
  cpu = time.process_time() - begun
  found = {n: x for n, x in metrics.items() if isinstance(x, float)}
  keep("one", arm, seed, cpu=cpu, **found)


def stage_two(arm, seed):
  """Trains the quickstart's text model, scored at each of `STEPS`.

  At a constant rate every step of the run is the end of a shorter run; the
  moving average of the parameters replaces the decay.
  """
  made, workdir = config.load("quickstart_text"), folder(arm, seed) + "_text"
  rate = dataclasses.replace(made.task.optimizer, decay="constant")
  made = dataclasses.replace(
    made,
    task=dataclasses.replace(made.task, optimizer=rate),
    seed=seed,
    checkpoints=CheckpointPolicy(every=max(STEPS), keep=1),
    first_stage=folder(arm, seed),
  )
  for steps in STEPS:
    if ("two", arm, seed, steps) in {key(line) for line in read()}:
      continue
    begun = time.process_time()
    metrics = ldm_jax.train(
      dataclasses.replace(made, steps=steps), workdir
    ).metrics
    cpu = time.process_time() - begun
    request = ReportRequest(workdir, f"{workdir}/report", num=SAMPLES)
    found = dict(metrics) | report(request).metrics
    found = {n: x for n, x in found.items() if isinstance(x, float)}
    keep("two", arm, seed, steps, cpu=cpu, **found)


def folder(arm, seed):
  return os.path.join(RUNS, f"{arm}_{seed}")


def key(line):
  return line["what"], line["arm"], line["seed"], line["steps"]


def keep(what, arm=None, seed=None, steps=None, **found):
  """Appends a measurement to the file."""
  line = {"what": what, "arm": arm, "seed": seed, "steps": steps}
  line |= {name: round(float(value), 4) for name, value in found.items()}
  with open(MEASURED, "a") as file:
    file.write(json.dumps(line) + "\n")
  print(json.dumps(line), flush=True)


def read():
  if not os.path.exists(MEASURED):
    return []
  with open(MEASURED) as file:
    return [json.loads(line) for line in file]


def needed(curve, value):
  """The steps after which a curve first has `value`, between its points."""
  if curve[0][1] >= value:
    return float(curve[0][0])
  for (a, x), (b, y) in itertools.pairwise(curve):
    if y >= value:
      return a + (b - a) * (value - x) / (y - x)
  return float("nan")


def tables(arms, seeds):
  """Prints scores by steps, and the ratios of steps at equal scores.

  A ratio is that of the steps in which an arm reaches what the first arm has,
  to the steps of the first arm. The scores are means over the seeds.
  """
  lines = {key(line): line for line in read()}
  get = lambda arm, n, name: np.mean(
    [lines["two", arm, seed, n][name] for seed in seeds]
  )
  print("| steps | arm |", " | ".join(SCORES), "|")
  print("|" + "---|" * (2 + len(SCORES)))
  for n in STEPS:
    for arm in arms:
      cells = [f"{get(arm, n, name):.3f}" for name in SCORES]
      print(f"| {n} | {arm} |", " | ".join(cells), "|")
  for arm in arms[1:]:
    for score in SCORES:
      curve = [(n, get(arm, n, score)) for n in STEPS]
      ratios = [
        f"{needed(curve, get(arms[0], n, score)) / n:.2f}" for n in STEPS
      ]
      print(f"{arm} / {arms[0]}, {score}:", " ".join(ratios))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--arms", default="plain,aligned")
  parser.add_argument("--seeds", default="0,1")
  flags = parser.parse_args()
  arms = flags.arms.split(",")
  seeds = [int(seed) for seed in flags.seeds.split(",")]
  os.makedirs(RUNS, exist_ok=True)
  if "aligned" in arms and not os.path.exists(FOLDER):
    teach()
  for seed in seeds:
    for arm in arms:
      if ("one", arm, seed, None) not in {key(line) for line in read()}:
        stage_one(arm, seed)
      stage_two(arm, seed)
  tables(arms, seeds)


if __name__ == "__main__":
  main()
