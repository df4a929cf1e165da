"""Evaluation of first stages: all that is lost, and what it costs."""

import contextlib
import json
import logging
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.evaluation.first_stage.charts import (
  Charts,
  chart_side,
  glyph_mosaics,
)
from ldm_jax.evaluation.first_stage.codec import Codec
from ldm_jax.evaluation.first_stage.load import (
  LoadedFirstStage,
  load_first_stages,
)
from ldm_jax.evaluation.first_stage.measure import Originals, measure
from ldm_jax.evaluation.first_stage.request import (
  FirstStageRequest,
  FirstStageResult,
)
from ldm_jax.evaluation.first_stage.sheet import comparison_sheet
from ldm_jax.evaluation.image_sets import folder_images
from ldm_jax.evaluation.metric_networks import MetricNetworks
from ldm_jax.fields.arguments import checked
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.run import Run
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.folder_lock import folder_lock

logger = logging.getLogger(__name__)

Images = UInt8[np.ndarray, "_ _ _ 3"]


@checked
def evaluate_first_stages(request: FirstStageRequest) -> FirstStageResult:
  """Metrics of first stages on the same images and charts, side by side.

    result = ldm_jax.evaluate_first_stages(
      ldm_jax.FirstStageRequest(("runs/ae", "sd/vae"), "PHOTOS", "out")
    )
    print(result.table())

  Writes sheet.png, table.md and first_stages.json to `request.out`. Metrics
  whose network is not given are left out, with a line that names what they
  need.

  Raises:
    ConfigError: the request cannot be fulfilled.
    ImageError: an image cannot be read.
    WeightsError: a file of weights cannot be used.
    OutputLocked: another process writes to `request.out`.
  """
  with config_errors():
    processes.initialize()
  with contextlib.ExitStack() as held:
    if request.out:
      held.enter_context(folder_lock(request.out))
    with config_errors():
      return _evaluate(request)


def _evaluate(request: FirstStageRequest) -> FirstStageResult:
  sharding = MeshShape().build()
  stages = load_first_stages(request.models, sharding, request.trust)
  for stage in stages:
    _check_size(stage, request.size)
  networks = MetricNetworks(request.networks(), sharding)
  images = _images(request)
  side = chart_side(request.size, [stage.module.stride for stage in stages])
  originals = Originals(images, Charts.of(side), networks)
  shown, rows = {}, []
  for stage in stages:
    logger.info(f"first stage {stage.name}")
    codec = Codec(stage, sharding, request.batch)
    found, reconstructed = measure(stage, codec, originals, request.rounds)
    rows.append(found)
    shown[stage.name] = reconstructed
  _log_missing(networks)
  settings: dict[str, Any] = {
    "images": request.images or "mosaics of the built-in data",
    "n": len(images),
    "size": request.size,
    "batch": request.batch,
    "device": sharding.platform,
  }
  if request.inception:
    settings["resize"] = request.resize
  result = FirstStageResult(settings, tuple(rows))
  if not request.out or not processes.is_first():
    return result
  sheet = comparison_sheet(originals.shown(), shown)
  return _written(request.out, result, sheet)


def _check_size(stage: LoadedFirstStage, size: int) -> None:
  """Raises ConfigError if a first stage cannot encode images of this size."""
  try:
    stage.module.latent_shape(size, size)
  except ValueError as error:
    raise ConfigError(f"{stage.name}: {error} (--size)") from error


def _images(request: FirstStageRequest) -> Images:
  """The images of the request, cropped to squares of its size."""
  if request.images is None:
    return glyph_mosaics(request.num, request.size)
  if Run.exists(request.images):
    raise ConfigError(
      f"{request.images} is a run; the images are a folder of images, or left "
      "out, and runs are models (--model)"
    )
  found = folder_images(request.images, None)
  count = min(request.num, len(found))
  if count < request.num:
    request.networks().check_count(count)
    logger.warning(f"{request.images} has {count} images; all are taken")
  crop = Augment(request.size, crop="center", flip=False)
  return np.stack(
    [crop.center({"image": found[i]})["image"] for i in range(count)]
  )


def _log_missing(networks: MetricNetworks) -> None:
  """Logs what metrics that are left out need."""
  names = {"fid": "rfid, ifid", "fdd": "rfdd", "lpips": "lpips"}
  names |= {"ssim": "ssim"}
  for name, shown in names.items():
    if name in networks.missing and processes.is_first():
      logger.warning(f"left out: {shown}; give {networks.missing[name]}")


def _written(
  folder: str, result: FirstStageResult, sheet: np.ndarray
) -> FirstStageResult:
  """Writes the sheet, the table and the JSON; the result with their paths."""
  os.makedirs(folder, exist_ok=True)
  names = ("sheet.png", "table.md", "first_stages.json")
  paths = tuple(os.path.join(folder, name) for name in names)
  image_files.write_png(paths[0], sheet)
  for path, text in zip(
    paths[1:], (result.table(), json.dumps(result.to_json())), strict=True
  ):
    with replace_file(path, "utf-8") as file:
      file.write(text + "\n")
  return FirstStageResult(result.settings, result.stages, paths)
