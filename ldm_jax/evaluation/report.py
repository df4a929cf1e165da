"""A report on a run of a denoiser: metrics, samples and loss curves."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ldm_jax.config import Data
from ldm_jax.data import batching
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.evaluation.condition_sampler import ConditionSampler
from ldm_jax.evaluation.glyphs import condition_accuracy
from ldm_jax.evaluation.glyphs.condition_metrics import (
  condition_metrics,
  reconstruction_metrics,
  retrieval_metrics,
)
from ldm_jax.evaluation.glyphs.glyph_classifier import read_glyphs
from ldm_jax.evaluation.html_report import Page, html_page
from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.evaluation.reconstruct import reconstruction_function
from ldm_jax.fields.arguments import check_request, checked
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.open_model import open_denoiser_run
from ldm_jax.run import Run
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.runtime.json_values import json_value
from ldm_jax.runtime.log import log_duration
from ldm_jax.runtime.monitoring import metric_writer
from ldm_jax.runtime.monitoring.progress import Progress
from ldm_jax.sampling import SamplingConfig

SHOWN = 16
Images = UInt8[np.ndarray, "b h w 3"]


@dataclasses.dataclass(frozen=True)
class ReportRequest:
  """What is reported.

  Attributes:
    model: a run folder of a denoiser.
    out: folder for report.html and samples.png.
    num: number of held-out examples and samples, 1 or more; at most all are
      taken.
    steps: of DDIM, 1 or more.
    guidance: scale of classifier-free guidance; 1 is none.
    eta: noise of DDIM, 0 to 1.
    seed: of the samples.
    held_out: take (shape, colour) pairs excluded from training (of the built-in
      glyphs).
    classifier: a run of a classifier of noisy latents that guides to the
      examples' labels; or None.
    classifier_scale: of its gradient.
    unconditional: whether conditions take their unconditional values.
    trust: packages whose classes the run may name; see `Run.open`.
  """

  model: str
  out: str
  num: int = 256
  steps: int = 15
  guidance: float = 2.0
  eta: float = 0.0
  seed: int = 0
  held_out: bool = False
  classifier: str | None = None
  classifier_scale: float = 1.0
  unconditional: bool = False
  trust: tuple[str, ...] = ()

  def __post_init__(self):
    check_request(self)
    if self.num < 1:
      raise ConfigError(f"num must be 1 or more, got {self.num} (--num)")
    if self.steps < 1:
      raise ConfigError(f"steps must be 1 or more, got {self.steps} (--steps)")


@dataclasses.dataclass(frozen=True)
class ReportResult:
  """What was measured, and where it was written.

  Attributes:
    metrics: numbers by name, rounded to four digits.
    page: path of report.html.
    samples: path of the sheet of samples.
  """

  metrics: dict[str, float]
  page: str
  samples: str

  def to_json(self) -> dict[str, Any]:
    """The metrics as JSON values."""
    return {name: json_value(value) for name, value in self.metrics.items()}


@checked
def report(request: ReportRequest) -> ReportResult:
  """Generates samples for held-out examples and measures both stages.

  Writes report.html (metrics, loss curves, samples, reconstructions) and
  samples.png. For the built-in glyphs data it also measures how well samples
  match their conditions.

  Raises:
    ConfigError: the request cannot be fulfilled.
    OutputLocked: another process writes to `request.out`.
  """
  with folder_lock(request.out):
    return _report(request)


def _report(request: ReportRequest) -> ReportResult:
  with config_errors():
    run = open_denoiser_run(request.model, request.trust)
    data = run.experiment.data
    if request.held_out:
      data = _held_out_pairs(data)
    examples, captions = _examples(run, data, request.num)
    config = _sampling_config(request, examples["image"])
    sharding = MeshShape().build()
    sampler = ConditionSampler(
      run,
      config,
      sharding,
      request.classifier,
      request.unconditional,
      request.trust,
    )
    sampler.check(examples)
  count = len(examples["image"])
  with log_duration(f"reconstructing {count} images by the first stage"):
    reconstructions = reconstruction_function(run, sharding)(examples["image"])
  with Progress("sampling", sampler.network_calls(count)) as bar:
    samples = sampler.generate(examples, progress=bar.update)
  metrics = {"psnr": _mean_psnr(examples["image"], reconstructions)}
  with log_duration("measuring reconstructions and samples"):
    metrics |= _glyph_metrics(
      request, run, data.validation, samples, reconstructions, examples
    )
  stages = {"one": run.experiment.first_stage, "two": request.model}
  logs = {
    name: metric_writer.read_metrics(folder) for name, folder in stages.items()
  }
  for name, log in logs.items():
    if log:
      metrics[f"seconds_stage_{name}"] = log[-1]["seconds"]
  metrics = {name: round(float(value), 4) for name, value in metrics.items()}
  pairs = np.concatenate([examples["image"], reconstructions], axis=2)
  page = Page(metrics, logs, pairs[:SHOWN], samples[:SHOWN], captions[:SHOWN])
  return ReportResult(metrics, *_write(request.out, page))


def _write(folder: str, page: Page) -> tuple[str, str]:
  """Writes the page and a sheet of its samples; returns their paths."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, "report.html")
  with replace_file(path, "utf-8") as file:
    file.write(html_page(page))
  sheet = image_files.image_grid(page.samples, page.captions, columns=8)
  sheet_path = os.path.join(folder, "samples.png")
  image_files.write_png(sheet_path, sheet)
  return path, sheet_path


def _held_out_pairs(data: Data) -> Data:
  """The same data with the pairs excluded from training as validation."""
  if not isinstance(data.validation, Glyphs):
    raise ConfigError(
      "held_out needs the built-in glyphs; leave it out (--held_out)"
    )
  held_out = dataclasses.replace(data.validation, split="held_out")
  return dataclasses.replace(data, validation=held_out)


def _examples(
  run: Run, data: Data, num: int
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
  """The first held-out examples, and their captions."""
  count = min(num, len(data.validation))
  if count < 1:
    raise ConfigError("the run's data has no validation examples")
  examples = batching.first(
    data.validation,
    count,
    augment=data.centred,
    tokenizer=run.tokenizer,
    transforms=data.transforms,
  )
  captions = [data.validation[i].get("caption", "") for i in range(count)]
  return examples, captions


def _glyph_metrics(
  request: ReportRequest,
  run: Run,
  source: Any,
  samples: Images,
  reconstructions: Images,
  examples: Mapping[str, np.ndarray],
) -> dict[str, float]:
  """Metrics of the built-in glyphs of level 0; of other data none."""
  glyphs = source.source if isinstance(source, Neighbours) else source
  if not isinstance(glyphs, Glyphs) or glyphs.level != 0:
    return {}
  read = functools.partial(read_glyphs, palette=int(glyphs.palette == "soft"))
  model = run.experiment.task.model
  metrics = condition_metrics(model, samples, examples, read)
  if request.classifier:
    metrics |= condition_accuracy.class_accuracy(
      read(samples), examples["label"]
    )
  if isinstance(source, Neighbours):
    metrics |= retrieval_metrics(run.experiment.data.source, source, samples)
  found = reconstruction_metrics(read(reconstructions), examples)
  return metrics | {f"first_stage_{n}": value for n, value in found.items()}


def _mean_psnr(images: Images, reconstructions: Images) -> float:
  both = images, reconstructions
  return float(
    np.mean(psnr(*(np.asarray(to_float(jnp.asarray(x))) for x in both)))
  )


def _sampling_config(request: ReportRequest, images: Images) -> SamplingConfig:
  """How images of the size of the held-out ones are generated."""
  return SamplingConfig(
    height=images.shape[1],
    width=images.shape[2],
    sampler_config=SamplerConfig(request.steps, eta=request.eta),
    guidance=ClassifierFreeGuidance(request.guidance),
    seed=request.seed,
    classifier_scale=request.classifier_scale,
  )
