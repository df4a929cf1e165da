"""Behind the report: measure both stages, and lay the pictures out."""

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.config import Data
from ldm_jax.data import batching
from ldm_jax.data.glyphs.source import SHAPES, Glyphs
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.glyphs import condition_accuracy
from ldm_jax.evaluation.glyphs.glyph_classifier import (
  GlyphReading,
  read_glyphs,
  score,
)
from ldm_jax.evaluation.html_report import write_page
from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.evaluation.reconstruct import Reconstructor, restorer
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  SegmentationEmbedder,
)
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.open_model import open_denoiser_run
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.json_values import json_value
from ldm_jax.runtime.monitoring import metric_writer
from ldm_jax.sampling import SamplingConfig

SHOWN = 16
Images = UInt8[np.ndarray, "b h w 3"]


def report(flags: argparse.Namespace) -> int:
  """Measures, writes report.html and prints one line of JSON."""
  with usage_errors():
    run = open_denoiser_run(flags.model)
    data = run.experiment.data
    if flags.held_out:
      data = _unseen(data)
    count = min(flags.num, len(data.validation))
    if count < 1:
      raise ConfigError(f"--num must be 1 or more, got {flags.num}")
    held_out = batching.first(
      data.validation,
      count,
      augment=data.centred,
      tokenizer=run.tokenizer,
      transforms=data.transforms,
    )
    captions = [data.validation[i].get("caption", "") for i in range(count)]
    settings = _settings(flags, held_out["image"])
    sharding = MeshShape().build()
    artist = Reconstructor(
      run, settings, sharding, flags.classifier, flags.null
    )
    artist.check(held_out)
  restored = restorer(run, sharding)(held_out["image"])
  with tqdm(total=artist.questions(count), unit="step") as bar:
    drawn = artist.draw(held_out, progress=bar.update)
  told = {"psnr": _psnr(held_out["image"], restored)}
  source = data.validation
  bare = source.source if isinstance(source, Neighbours) else source
  if isinstance(bare, Glyphs) and bare.level == 0:
    seen = functools.partial(read_glyphs, palette=int(bare.palette == "soft"))
    told |= condition_accuracy_of(
      run.experiment.task.model, drawn, held_out, seen
    )
    if flags.classifier:
      told |= condition_accuracy.class_accuracy(seen(drawn), held_out["label"])
    if isinstance(source, Neighbours):
      told |= _likeness(run.experiment.data.source, source, drawn)
    told |= {
      f"first_stage_{name}": value
      for name, value in _preserved(seen(restored), held_out).items()
    }
  stages = {"one": run.experiment.first_stage, "two": flags.model}
  logs = {
    name: metric_writer.read_metrics(folder) for name, folder in stages.items()
  }
  for name, log in logs.items():
    if log:
      told[f"seconds_stage_{name}"] = log[-1]["seconds"]
  told = {name: round(float(value), 4) for name, value in told.items()}
  pairs = np.concatenate([held_out["image"], restored], axis=2)
  os.makedirs(flags.out, exist_ok=True)
  path = os.path.join(flags.out, "report.html")
  text = write_page(told, logs, pairs[:SHOWN], drawn[:SHOWN], captions[:SHOWN])
  with open(path + ".part", "w") as file:
    file.write(text)
  os.replace(path + ".part", path)
  print(path)
  sheet = image_files.image_grid(drawn[:SHOWN], captions[:SHOWN], columns=8)
  image_files.write_png(os.path.join(flags.out, "samples.png"), sheet)
  print(json.dumps({name: json_value(value) for name, value in told.items()}))
  return 0


def _unseen(data: Data) -> Data:
  """The same, to be judged by the pairs that training never showed."""
  if not isinstance(data.validation, Glyphs):
    raise ConfigError("--held_out is of the built-in glyphs; leave it out")
  unseen = dataclasses.replace(data.validation, split="held_out")
  return dataclasses.replace(data, validation=unseen)


def _preserved(
  verdict: GlyphReading, held_out: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What the judge still reads in reconstructions."""
  iou = condition_accuracy.mean_iou(
    verdict.segmap, held_out["segmap"], 1 + len(SHAPES)
  )
  return iou | {"all": score(verdict, held_out["attributes"])["all"]}


def _likeness(
  database: Neighbours, source: Neighbours, drawn: Images
) -> dict[str, float]:
  """How like their neighbours samples are."""
  places = np.stack([source.places(i) for i in range(len(drawn))])
  seen = [
    read_glyphs(np.stack([database.source[int(i)]["image"] for i in column]))
    for column in places.T
  ]
  return condition_accuracy.caption_accuracy(read_glyphs(drawn), seen)


def _psnr(images: Images, restored: Images) -> float:
  each = psnr(
    *(np.asarray(to_float(jnp.asarray(x))) for x in (images, restored))
  )
  return float(np.mean(each))


def _settings(flags: argparse.Namespace, images: Images) -> SamplingConfig:
  """How to draw pictures of the size of the held-out ones."""
  return SamplingConfig(
    height=images.shape[1],
    width=images.shape[2],
    sampler_config=SamplerConfig(flags.steps, eta=flags.eta),
    guidance=ClassifierFreeGuidance(flags.guidance),
    seed=flags.seed,
    classifier=flags.classifier_scale,
  )


def condition_accuracy_of(
  model: LatentDiffusion,
  drawn: Images,
  held_out: Mapping[str, np.ndarray],
  seen: Callable[[Images], GlyphReading] = read_glyphs,
) -> dict[str, float]:
  """What the judge says of samples, by what the model is told."""
  verdict = seen(drawn)
  told = condition_accuracy.valid_fraction(verdict)
  for part in model.conditioners:
    if isinstance(part, ClassEmbedder):
      told |= condition_accuracy.class_accuracy(
        verdict, held_out[part.input_key]
      )
      told |= condition_accuracy.diversity(verdict)
    elif isinstance(part, TextEmbedder):
      told |= score(verdict, held_out["attributes"])
    elif isinstance(part, SegmentationEmbedder):
      wanted = held_out[part.input_key]
      told |= condition_accuracy.mean_iou(verdict.segmap, wanted, part.classes)
    elif isinstance(part, LayoutEmbedder):
      told |= condition_accuracy.box_iou(verdict.segmap, held_out["boxes"])
    elif isinstance(part, MaskedImage):
      masks = held_out[part.input_key]
      told |= condition_accuracy.inpainting_accuracy(
        drawn, held_out["image"], masks, verdict
      )
    elif isinstance(part, LowResolution):
      small = held_out[part.input_key]
      told |= condition_accuracy.upscaling_psnr(drawn, held_out["image"], small)
  return told
