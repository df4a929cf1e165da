"""Describes a model or a generated image from its headers and configs."""

import math
import os
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from ldm_jax.data.open_images import read_png_text
from ldm_jax.errors import ConfigError, ImageError, config_errors
from ldm_jax.fields.arguments import checked
from ldm_jax.files.strict_json import parse_object
from ldm_jax.latents import image_shape
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.configs.scheduler_config import schedule
from ldm_jax.pretrained.from_pretrained import find_components
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.networks import ForeignNetwork, class_of
from ldm_jax.pretrained.open_model import is_denoiser
from ldm_jax.pretrained.quantizer import quantization_errors
from ldm_jax.pretrained.text.subfolders import absent_encoders
from ldm_jax.run import Run, class_names, recorded_data
from ldm_jax.weights.quantize import WeightDtype

PNG = b"\x89PNG"  # the first bytes of such a file


@checked
def inspect(
  path: str,
  variant: str | None = None,
  trust: Collection[str] = (),
  weight_dtype: WeightDtype | None = None,
) -> dict[str, Any]:
  """What a file or folder is; JSON values only, no tensor is read.

  Args:
    path: a run, a diffusers folder (or one network's), a single file, a
      repository of the hub, or a PNG that was generated here.
    variant: of a diffusers folder's weight files, such as "fp16".
    trust: packages whose classes a run may name; see `Run.open`.
    weight_dtype: "int8" or "float8_e4m3fn": read the matrices of a model's
      denoiser and text encoders, and add to each network the "relative error"
      of every one that this format would keep (see `quantization_errors`).

  Returns:
    "kind" and what depends on it. "run": task, step, prediction, the arrays it
    is conditioned on, size [width, height], data, the names of its classes,
    "first stage" with the shape [h, w, c] of its latents, and "trained
    parameters". "model": family (of a single file), pipeline (of a folder),
    prediction, and by network its class, number of parameters and, by dtype,
    how many of them; "notices" lists what is missing or was guessed. "image":
    its size [width, height] and the settings that generated it.

  Raises:
    ConfigError: there is nothing of the kind, or a PNG without settings.
    WeightsError: a file of weights is unreadable or of no known family.
  """
  with config_errors():
    path = local_path(path, variant=variant)
    is_run = Run.exists(path)
    if is_run and weight_dtype is not None:
      raise ConfigError(
        f"{path!r} is a run; weight_dtype is of published weights: leave it "
        "out (--weight_dtype)"
      )
    if is_run:
      return _describe_run(Run.open(path, trust))
    if os.path.isfile(path):
      with open(path, "rb") as file:
        start = file.read(len(PNG))
      if start == PNG:
        return _describe_image(path)
    return _describe_model(find_components(path, variant=variant), weight_dtype)


def _describe_run(run: Run) -> dict[str, Any]:
  task = run.experiment.task
  step = run.step if run.has_step else 0
  found = {"kind": "run", "task": type(task).__name__, "step": step}
  if is_denoiser(task):
    found["prediction"] = task.model.prediction
    found["conditions"] = [p.input_key for p in task.model.conditioners]
  found |= _describe_images(run)
  found["data"] = _describe_data(run)
  if classes := class_names(run.folder):
    found["classes"] = list(classes)
  shapes = jax.eval_shape(
    task.init, jax.random.key(0), run.batch, task.frozen_shapes(run.batch)
  )
  sizes = jax.tree.map(lambda leaf: math.prod(leaf.shape), shapes.params)
  return found | {"trained parameters": sum(jax.tree.leaves(sizes))}


def _describe_images(run: Run) -> dict[str, Any]:
  """The size of the images of a run, and the first stage that encodes them."""
  stage = getattr(run.experiment.task, "first_stage", None)
  if stage is None:
    image = run.batch.get("image")
    return {} if image is None else {"size": list(image.shape[2:0:-1])}
  _, height, width, _ = image_shape(stage, run.batch)
  described = {
    "class": type(stage).__name__,
    "run": run.experiment.first_stage or run.experiment.start,
    "latents": list(stage.latent_shape(height, width)),
  }
  return {"size": [width, height], "first stage": described}


def _describe_data(run: Run) -> dict[str, Any]:
  """The class of the training source, where it is, and its examples."""
  source, _ = run.experiment.data.training
  found = {"source": type(source).__name__}
  for name in ("path", "folder", "name", "split"):
    if isinstance(value := getattr(source, name, None), str):
      found[name] = value
  recorded = recorded_data(run.folder)
  return found | ({"examples": recorded["count"]} if recorded else {})


def _describe_image(path: str) -> dict[str, Any]:
  with config_errors(ImageError):
    size, text = read_png_text(path, "ldm_jax")
  if text is None:
    raise ConfigError(f"{path} holds no settings of ldm_jax")
  settings = parse_object(text, f"the settings in {path}", ConfigError)
  return {"kind": "image", "size": list(size)} | settings


def _describe_model(
  components: Components, weight_dtype: WeightDtype | None
) -> dict[str, Any]:
  found: dict[str, Any] = {"kind": "model"}
  if components.family is not None:
    found["family"] = components.family
  if "_class_name" in components.index:
    found["pipeline"] = components.index["_class_name"]
  if components.scheduler is not None:
    found["prediction"] = schedule(components.scheduler)[1]
  found["networks"] = {
    name: _describe_network(network)
    for name, network in components.networks.items()
  }
  if weight_dtype is not None:
    for name, network in components.networks.items():
      errors = quantization_errors(network, name, weight_dtype)
      found["networks"][name]["relative error"] = errors
  notices = components.warnings
  if components.single is None or components.family is not None:
    notices += absent_encoders(components.networks)
  if notices:
    found["notices"] = list(notices)
  return found


def _describe_network(network: ForeignNetwork) -> dict[str, Any]:
  dtypes: dict[str, int] = {}
  for name in network.tensors:
    tensor = network.tensors[name]
    dtype = np.dtype(tensor.dtype).name
    dtypes[dtype] = dtypes.get(dtype, 0) + math.prod(np.shape(tensor))
  return {
    "class": class_of(network.config),
    "parameters": sum(dtypes.values()),
    "dtype": dtypes,
  }
