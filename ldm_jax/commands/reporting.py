"""Behind the report: measure both stages, and lay the pictures out."""

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from ldm_jax.commands.conditions import open_classifier
from ldm_jax.commands.doors import usage
from ldm_jax.commands.models import open_denoising, open_run
from ldm_jax.commands.page import page
from ldm_jax.config import Data
from ldm_jax.data import pipeline
from ldm_jax.data.glyphs import SHAPES, Glyphs
from ldm_jax.data.neighbours import Neighbours
from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.samplers import Recipe
from ldm_jax.evaluation import obedience
from ldm_jax.evaluation.judge import Verdict, judge, score
from ldm_jax.evaluation.psnr import psnr
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioner import (
  ClassEmbedder,
  LayoutEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners import Beside, has_null
from ldm_jax.nn.spatial import LowResolution, MapEmbedder, MaskedImage
from ldm_jax.nodes import ConfigError
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.run import Run
from ldm_jax.runtime import metrics, pictures
from ldm_jax.runtime.sharding import MeshShape
from ldm_jax.sampling import Given, Order, Said, Settings, Studio
from ldm_jax.tasks.denoising import Denoising, Frozen

BATCH = 64
SHOWN = 16
Images = UInt8[np.ndarray, "b h w 3"]


def report(flags: argparse.Namespace) -> int:
  """Measures, writes report.html and prints one line of JSON."""
  with usage():
    run = open_denoising(flags.model)
    data = run.experiment.data
    if flags.held_out:
      data = _unseen(data)
    count = min(flags.num, len(data.validation))
    if count < 1:
      raise ConfigError(f"--num must be 1 or more, got {flags.num}")
    held_out = pipeline.first(
      data.validation,
      count,
      augment=data.centred,
      tokenizer=run.tokenizer,
      views=data.views,
    )
    captions = [data.validation[i].get("caption", "") for i in range(count)]
  sharding = MeshShape().build()
  frozen = run.frozen(sharding)
  restored = reconstruct(run.experiment.task, frozen, held_out["image"])
  drawn = _draw(flags, run, held_out)
  told = {"psnr": _psnr(held_out["image"], restored)}
  source = data.validation
  bare = source.source if isinstance(source, Neighbours) else source
  if isinstance(bare, Glyphs) and bare.level == 0:
    seen = functools.partial(judge, palette=int(bare.palette == "soft"))
    told |= obeyed(run.experiment.task.model, drawn, held_out, seen)
    if flags.classifier:
      told |= obedience.class_accuracy(seen(drawn), held_out["label"])
    if isinstance(source, Neighbours):
      told |= _likeness(run.experiment.data.source, source, drawn)
    told |= {
      f"first_stage_{name}": value
      for name, value in _preserved(seen(restored), held_out).items()
    }
  stages = {"one": run.experiment.first_stage, "two": flags.model}
  logs = {name: metrics.read(folder) for name, folder in stages.items()}
  for name, log in logs.items():
    if log:
      told[f"seconds_stage_{name}"] = log[-1]["seconds"]
  told = {name: round(float(value), 4) for name, value in told.items()}
  pairs = np.concatenate([held_out["image"], restored], axis=2)
  os.makedirs(flags.out, exist_ok=True)
  path = os.path.join(flags.out, "report.html")
  text = page(told, logs, pairs[:SHOWN], drawn[:SHOWN], captions[:SHOWN])
  with open(path + ".part", "w") as file:
    file.write(text)
  os.replace(path + ".part", path)
  print(path)
  sheet = pictures.grid(drawn[:SHOWN], captions[:SHOWN], columns=8)
  pictures.write_png(os.path.join(flags.out, "samples.png"), sheet)
  print(json.dumps(told))
  return 0


def _unseen(data: Data) -> Data:
  """The same, to be judged by the pairs that training never showed."""
  if not isinstance(data.validation, Glyphs):
    raise ConfigError("--held_out is of the built-in glyphs; leave it out")
  unseen = dataclasses.replace(data.validation, split="held_out")
  return dataclasses.replace(data, validation=unseen)


def reconstruct(task: Denoising, frozen: Frozen, images: Images) -> Images:
  """Images through the frozen first stage and the mode of their posterior."""
  model = task.model

  @jax.jit
  def restore(frozen: Frozen, images: jax.Array) -> jax.Array:
    params = Parameters(frozen.first_stage, frozen.latent_scale, None, None)
    latents = model.encode(params, to_float(images)).mode()
    return model.decode(params, latents * params.latent_scale)

  parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
  return np.concatenate(
    [np.asarray(to_uint8(restore(frozen, part))) for part in parts]
  )


def _preserved(
  verdict: Verdict, held_out: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What the judge still reads in reconstructions."""
  iou = obedience.mean_iou(verdict.segmap, held_out["segmap"], 1 + len(SHAPES))
  return iou | {"all": score(verdict, held_out["attributes"])["all"]}


def _likeness(
  database: Neighbours, source: Neighbours, drawn: Images
) -> dict[str, float]:
  """How like their neighbours samples are."""
  places = np.stack([source.places(i) for i in range(len(drawn))])
  seen = [
    judge(np.stack([database.source[int(i)]["image"] for i in column]))
    for column in places.T
  ]
  return obedience.agreement(judge(drawn), seen)


def _psnr(images: Images, restored: Images) -> float:
  each = psnr(
    *(np.asarray(to_float(jnp.asarray(x))) for x in (images, restored))
  )
  return float(np.mean(each))


def _draw(
  flags: argparse.Namespace, run: Run, held_out: Mapping[str, np.ndarray]
) -> Images:
  """One image for what is known of each held-out one."""
  count, height, width, _ = held_out["image"].shape
  model = run.experiment.task.model
  settings = Settings(
    height=height,
    width=width,
    recipe=Recipe(flags.steps, eta=flags.eta),
    guidance=Guidance(flags.guidance),
    seed=flags.seed,
    classifier=flags.classifier_scale,
  )
  parts = [p for p in model.conditioners if not isinstance(p, Beside)]
  raw = {part.reads: held_out[part.reads] for part in parts}
  nulls = {part.reads: np.full(count, has_null(part)) for part in parts}
  never = {name: np.zeros(count, bool) for name in raw}
  positive, negative = (
    Said(raw, nulls if flags.null else never),
    Said(raw, nulls),
  )
  given = Given()
  if part := model.part(MaskedImage):
    given = Given(held_out["image"], held_out[part.reads])
  elif part := model.part(LowResolution):
    given = Given(held_out[part.reads])
  sharding = MeshShape().build()
  opened = open_run(run, sharding)
  order, classifier = Order(count, BATCH, given=given), None
  if flags.classifier:
    scale = float(opened.params.latent_scale)
    classifier = open_classifier(flags.classifier, scale, sharding)
    order = dataclasses.replace(order, labels=held_out["label"])
  studio = Studio(opened.model, opened.params, sharding, classifier=classifier)
  studio.check(settings, order)
  batches = -(-count // studio.batch(order))
  with tqdm(total=batches * settings.recipe.steps, unit="step") as bar:
    drawn = studio.draw(settings, positive, negative, order, bar.update)
    return np.concatenate(list(drawn))


def obeyed(
  model: LatentDiffusion,
  drawn: Images,
  held_out: Mapping[str, np.ndarray],
  seen: Callable[[Images], Verdict] = judge,
) -> dict[str, float]:
  """What the judge says of samples, by what the model is told."""
  verdict = seen(drawn)
  told = obedience.legality(verdict)
  for part in model.conditioners:
    if isinstance(part, ClassEmbedder):
      told |= obedience.class_accuracy(verdict, held_out[part.reads])
      told |= obedience.diversity(verdict)
    elif isinstance(part, TextEmbedder):
      told |= score(verdict, held_out["attributes"])
    elif isinstance(part, MapEmbedder):
      wanted = held_out[part.reads]
      told |= obedience.mean_iou(verdict.segmap, wanted, part.classes)
    elif isinstance(part, LayoutEmbedder):
      told |= obedience.box_iou(verdict.segmap, held_out["boxes"])
    elif isinstance(part, MaskedImage):
      masks = held_out[part.reads]
      told |= obedience.filling(drawn, held_out["image"], masks, verdict)
    elif isinstance(part, LowResolution):
      small = held_out[part.reads]
      told |= obedience.enlargement(drawn, held_out["image"], small)
  return told
