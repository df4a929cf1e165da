"""Behind convert: whatever a model lies in, read and written otherwise."""

import argparse
import dataclasses
import os
import shutil
from typing import Any

import jax
import numpy as np

from ldm_jax.commands.doors import usage
from ldm_jax.commands.models import Reading, open_model
from ldm_jax.loop import say
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened
from ldm_jax.pretrained import loading, saving
from ldm_jax.run import Run
from ldm_jax.runtime.sharding import MeshShape
from ldm_jax.tasks.autoencoding import Autoencoding


@dataclasses.dataclass(frozen=True)
class Model:
  """A module with its parameters; `opened` holds the rest of a whole model."""

  module: Any
  params: Any
  opened: Opened | None = None


def convert(flags: argparse.Namespace) -> int:
  """Reads SRC and writes DST, which is there whole or not at all."""
  with usage():
    if os.path.exists(flags.target):
      raise ConfigError(f"{flags.target} is there already; choose another DST")
    if flags.shard_gigabytes <= 0:
      raise ConfigError(
        f"--shard_gigabytes must be above 0, got {flags.shard_gigabytes}"
      )
    model = _read(flags)
    _write(flags, model)
  print(flags.target)
  return 0


def _read(flags: argparse.Namespace) -> Model:
  source = flags.source
  if Run.exists(source):
    return _run(source)
  if flags.subfolder or _is_lone(source):
    is_file = os.path.isfile(source)
    if is_file:
      read = {"config": flags.config, "prediction": flags.prediction}
      return Model(*loading.from_single_file(source, **read))
    return Model(
      *loading.from_pretrained(source, flags.subfolder, variant=flags.variant)
    )
  reading = Reading(
    variant=flags.variant,
    prediction=flags.prediction,
    weights=flags.weights,
    config=flags.config,
    tokenizer=flags.tokenizer,
  )
  opened = open_model(source, reading)
  return Model(opened.model, opened.params, opened)


def _run(folder: str) -> Model:
  """A run of ours: stage one is an autoencoder, stage two a whole model."""
  run = Run.open(folder)
  task = run.experiment.task
  if isinstance(task, Autoencoding):
    params = run.trained(MeshShape().build())
    say(
      "note: a first stage does not know what its latents are to be multiplied "
      f"by; {saving.SCALE} is written, diffusers' own default"
    )
    return Model(task.autoencoder, params)
  opened = open_model(folder)
  return Model(opened.model, opened.params, opened)


def _is_lone(source: str) -> bool:
  """Whether SRC holds one network and no pipeline."""
  if os.path.isdir(source):
    return not os.path.exists(os.path.join(source, "model_index.json"))
  return os.path.isfile(source) and loading.is_lone_file(source)


def _write(flags: argparse.Namespace, model: Model) -> None:
  params = jax.tree.map(np.asarray, model.params)
  opened = model.opened
  if flags.single_file:
    if opened is not None and opened.words is not None:
      say("note: a single file holds no tokenizer")
    saving.save_single_file(
      model.module, params, flags.target, dtype=flags.dtype
    )
    return
  part = f"{flags.target.rstrip('/')}.part"
  shutil.rmtree(part, ignore_errors=True)
  told = (
    {} if opened is None else {"words": opened.words, "side": opened.height}
  )
  try:
    saving.save_pretrained(
      model.module,
      params,
      part,
      dtype=flags.dtype,
      max_bytes=int(flags.shard_gigabytes * 2**30),
      **told,
    )
    os.replace(part, flags.target)
  finally:
    shutil.rmtree(part, ignore_errors=True)
