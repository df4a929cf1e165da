"""Evaluation of a run, or of folders of images."""

import contextlib
import json
import logging
import os

from ldm_jax.data.bad_images import SkipBadImages
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.evaluation.contact_sheets import ContactSheets, FeaturesByMode
from ldm_jax.evaluation.custom_metrics import load_metrics, takes_features
from ldm_jax.evaluation.generate_samples import SampleWriter
from ldm_jax.evaluation.image_sets import ImageSet, evenly_spaced, folder_images
from ldm_jax.evaluation.measure import Comparison, measure
from ldm_jax.evaluation.metric_networks import MetricNetworks
from ldm_jax.evaluation.metrics.statistics import (
  SUFFIXES,
  Statistics,
  read_statistics,
)
from ldm_jax.evaluation.request import EvaluationRequest, EvaluationResult
from ldm_jax.fields.arguments import checked
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.run import Run
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.folder_lock import folder_lock, output_lock
from ldm_jax.training.dataloading import bad_image_log

logger = logging.getLogger(__name__)


@checked
def evaluate(request: EvaluationRequest) -> EvaluationResult:
  """Metrics of a run's samples or reconstructions, or of a folder of images.

  Writes images of a run, contact sheets and evaluation.json to `request.out`.
  Metrics whose network is not given are "unavailable".

  Raises:
    ConfigError: the request cannot be fulfilled.
    ImageError: an image cannot be read.
    WeightsError: a file of weights cannot be used.
    OutputLocked: another process writes to `request.out`, or to the file of
      `request.write_statistics`.
  """
  with config_errors():
    processes.initialize()
  with contextlib.ExitStack() as held:
    if request.out:
      held.enter_context(folder_lock(request.out))
    if request.write_statistics:
      held.enter_context(output_lock(request.write_statistics))
    return _evaluate(request)


def _evaluate(request: EvaluationRequest) -> EvaluationResult:
  with config_errors():
    sharding = MeshShape().build()
    custom = load_metrics(request.metrics, request.trust)
    if any(map(takes_features, custom)) and not request.inception:
      raise ConfigError("a metric takes features; give inception (--inception)")
    if Run.exists(request.samples):
      writer = SampleWriter(request, sharding)
      count = writer.count
      reference = _reference(request, count) or writer.held_out
    else:
      writer, case = None, _folder_comparison(request)
      count, reference = len(case.samples), case.reference
    _check(request, count, reference)
    networks = MetricNetworks(request, sharding)
    if request.out:
      os.makedirs(request.out, exist_ok=True)
    if writer:
      writer.begin()
      case = _run_comparison(request, writer, reference)
    features, sheets = (
      networks.features(case.samples),
      ContactSheets(request.out),
    )
    files = _write_statistics(request, features)
    metrics = measure(case, networks, features, sheets, custom)
  metrics |= dict.fromkeys(_unavailable(networks, case), "unavailable")
  files += sheets.files
  result = EvaluationResult(_settings(request, case), metrics, tuple(files))
  if request.out and processes.is_first():
    _write_json(os.path.join(request.out, "evaluation.json"), result)
  return result


def _check(
  request: EvaluationRequest,
  count: int,
  reference: ImageSet | Statistics | None,
) -> None:
  """Raises ConfigError early for what would be found only at the end."""
  request.check_count(count)
  if isinstance(reference, Statistics) and reference.mode != request.resize:
    mode = reference.mode
    if mode is not None:
      raise ConfigError(
        f"{request.reference} holds statistics of the resizing mode {mode!r}; "
        f"give resize={mode!r} (--resize={mode})"
      )
    if request.resize == "both":
      raise ConfigError(
        f"{request.reference} does not say how its images were resized; give "
        "--resize=legacy (as ADM's) or --resize=clean"
      )


def _folder_comparison(request: EvaluationRequest) -> Comparison:
  """The comparison of a folder of images."""
  samples = folder_images(request.samples, request.num)
  reference = _reference(request, len(samples))
  is_alone = not (request.write_statistics or request.clip or request.metrics)
  if reference is None and is_alone:
    raise ConfigError(
      f"what is {request.samples} to be compared with? Give a folder or "
      "statistics as the reference, or write_statistics (--write_statistics)"
    )
  is_paired = request.paired
  if is_paired and not isinstance(reference, ImageSet):
    raise ConfigError("paired compares two folders; give the second (--paired)")
  if is_paired and samples.names != reference.names:
    odd = sorted(set(samples.names) ^ set(reference.names))
    raise ConfigError(
      f"paired needs the same names in both folders; {odd[0]!r} is in one of "
      "them (--paired)"
    )
  captions = samples.captions()
  if is_paired and not captions:
    captions = reference.captions()
  settings = {"what": "images"}
  return Comparison(
    samples, reference, is_paired, settings, is_paired, captions
  )


def _run_comparison(
  request: EvaluationRequest,
  writer: SampleWriter,
  reference: ImageSet | Statistics,
) -> Comparison:
  """The comparison of the images that a run generates now."""
  samples, memorisation = writer.write(), None
  captions = [] if request.unconditional else writer.held_out.captions()
  if not writer.is_reconstruction and request.train_images > 0:
    experiment = writer.run.experiment
    source = SkipBadImages(experiment.data.source, bad_image_log(experiment))
    train = evenly_spaced(source, experiment.data.centred, request.train_images)
    memorisation = writer.held_out, train
  is_paired = writer.is_reconstruction and reference is writer.held_out
  return Comparison(
    samples,
    reference,
    is_paired,
    writer.settings,
    writer.is_reconstruction,
    captions,
    memorisation,
  )


def _reference(
  request: EvaluationRequest, count: int
) -> ImageSet | Statistics | None:
  """What the request names as the reference.

  Raises:
    ConfigError: it is a folder of another number of images.
  """
  if request.reference is None:
    return None
  if request.reference.endswith(SUFFIXES):
    return read_statistics(request.reference)
  found = folder_images(request.reference, request.num)
  if len(found) != count:
    raise ConfigError(
      f"{count} samples but {len(found)} images in {request.reference}: "
      "distances depend on the number and cannot be compared; give "
      f"num={min(count, len(found))} (--num={min(count, len(found))}) for the "
      "first of both, or statistics of a whole set (--write_statistics)"
    )
  return found


def _write_statistics(
  request: EvaluationRequest, features: FeaturesByMode
) -> list[str]:
  """Writes the samples' statistics, if the request asks for them."""
  if not request.write_statistics or not processes.is_first():
    return []
  ((mode, found),) = features.items()
  Statistics.of(found, mode).write(request.write_statistics)
  return [request.write_statistics]


def _unavailable(networks: MetricNetworks, case: Comparison) -> list[str]:
  """Metrics that cannot be computed; logs what is needed for them."""
  pairwise = ("ssim", "lpips")
  missing = networks.missing
  absent = [n for n in missing if n not in pairwise or case.is_paired]
  if processes.is_first():
    for needed in sorted({missing[name] for name in absent}):
      names = ", ".join(n for n in absent if missing[n] == needed)
      logger.info(f"unavailable: {names}; give {needed}")
  return absent


def _settings(request: EvaluationRequest, case: Comparison) -> dict:
  """What was compared and how, by name."""
  reference, images = case.reference, case.reference_images
  count = reference.count if isinstance(reference, Statistics) else None
  settings = {
    "samples": request.samples,
    "against": request.reference or (reference and "held-out examples"),
    "n": len(case.samples),
    "n_against": count if images is None else len(images),
    **case.settings,
    "resize": request.resize,
  }
  if request.clip:
    settings["clip"] = os.path.basename(os.path.normpath(request.clip))
  if images is not None or case.memorisation:
    by = "inception" if request.inception else "pixels"
    settings["neighbours_by"] = by
  return settings


def _write_json(path: str, result: EvaluationResult) -> None:
  with replace_file(path, "utf-8") as file:
    file.write(json.dumps(result.to_json()) + "\n")
