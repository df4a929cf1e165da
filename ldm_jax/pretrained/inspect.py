"""Behind info: what a file is, told by its header and configs."""

import argparse
import json
import math
import os
from typing import Any

import jax
import numpy as np
from PIL import Image

from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained import loading
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.configs.scheduler_config import schedule
from ldm_jax.pretrained.networks import class_of
from ldm_jax.run import Run
from ldm_jax.training.denoiser import DenoiserTask

PNG = b"\x89PNG"


def inspect(flags: argparse.Namespace) -> int:
  """Prints what `flags.path` is as one JSON object."""
  with usage_errors():
    print(json.dumps(_told(flags.path, flags.variant), indent=1))
  return 0


def _told(path: str, variant: str | None) -> dict[str, Any]:
  if Run.exists(path):
    return _run(Run.open(path))
  if os.path.isfile(path):
    with open(path, "rb") as file:
      start = file.read(4)
    if start == PNG:
      return _picture(path)
  return _model(loading.find(path, variant=variant))


def _run(run: Run) -> dict[str, Any]:
  task = run.experiment.task
  told = {"kind": "run", "task": type(task).__name__, "step": run.step}
  if isinstance(task, DenoiserTask):
    told["prediction"] = task.model.prediction
  shapes = jax.eval_shape(
    task.init, jax.random.key(0), run.batch, task.frozen_shapes(run.batch)
  )
  sizes = jax.tree.map(lambda leaf: math.prod(leaf.shape), shapes.params)
  return told | {"trained parameters": sum(jax.tree.leaves(sizes))}


def _picture(path: str) -> dict[str, Any]:
  """The settings inside one of our PNGs.

  Raises:
    ConfigError: there are none.
  """
  with Image.open(path) as image:
    text = image.info.get("ldm_jax")
    size = image.size
  if text is None:
    raise ConfigError(f"{path} holds no settings of ours")
  return {"kind": "picture", "size": list(size)} | json.loads(text)


def _model(found: Components) -> dict[str, Any]:
  """Family, prediction, and what each network is."""
  told: dict[str, Any] = {"kind": "model"}
  if found.family is not None:
    told["family"] = found.family
  if "_class_name" in found.index:
    told["pipeline"] = found.index["_class_name"]
  if found.scheduler is not None:
    told["prediction"] = schedule(found.scheduler)[1]
  told["networks"] = {
    name: _network(foreign) for name, foreign in found.networks.items()
  }
  if found.notices:
    told["notices"] = list(found.notices)
  return told


def _network(foreign: Any) -> dict[str, Any]:
  dtypes: dict[str, int] = {}
  for name in foreign.tensors:
    tensor = foreign.tensors[name]
    kind = np.dtype(tensor.dtype).name
    dtypes[kind] = dtypes.get(kind, 0) + math.prod(np.shape(tensor))
  return {
    "class": class_of(foreign.config),
    "parameters": sum(dtypes.values()),
    "dtype": dtypes,
  }
