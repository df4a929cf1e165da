"""Behind convert: whatever a model lies in, read and written otherwise."""

import argparse
import dataclasses
import logging
import os
from typing import Any

import jax
import numpy as np

from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pretrained import saving
from ldm_jax.pretrained.configs.defaults import SCALING_FACTOR
from ldm_jax.pretrained.lora.export import save_lora
from ldm_jax.pretrained.networks import load
from ldm_jax.pretrained.open_model import (
  LoadOptions,
  assemble_model,
  find_components,
  open_denoising,
  open_model,
  open_run,
)
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.training.autoencoder import AutoencoderTask

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ConvertedModel:
  """A module with its parameters; `opened` holds the rest of a whole model."""

  module: Any
  params: Any
  opened: LoadedModel | None = None


def convert(flags: argparse.Namespace) -> int:
  """Reads SRC and writes DST, which is there whole or not at all."""
  with usage_errors():
    if os.path.exists(flags.target):
      raise ConfigError(f"{flags.target} is there already; choose another DST")
    if flags.shard_gigabytes <= 0:
      raise ConfigError(
        f"--shard_gigabytes must be above 0, got {flags.shard_gigabytes}"
      )
    if flags.lora:
      _write_lora(flags)
    else:
      _write(flags, _read(flags))
  print(flags.target)
  return 0


def _write_lora(flags: argparse.Namespace) -> None:
  """The factors of a run, in one file."""
  run = open_denoising(flags.source)
  task = run.experiment.task
  if task.lora is None:
    raise ConfigError(
      f"{flags.source!r} trained whole matrices; leave --lora out"
    )
  sharding = MeshShape().build()
  factors = jax.tree.map(np.asarray, run.trained(sharding))
  save_lora(
    open_run(run, sharding), task.lora, factors, flags.target, flags.lora
  )


def _read(flags: argparse.Namespace) -> ConvertedModel:
  reading = dataclasses.replace(LoadOptions.told(flags), dtype="float32")
  if Run.exists(flags.source):
    if flags.subfolder:
      raise ConfigError(f"{flags.source!r} is a run; leave --subfolder out")
    return _run(flags.source, reading)
  found = find_components(flags.source, reading, flags.subfolder)
  if found.lone is None:
    return _whole(assemble_model(found, reading))
  if reading.tokenizer:
    raise ConfigError(
      "a network by itself needs no words; leave --tokenizer out"
    )
  return ConvertedModel(*load(found.lone))


def _whole(opened: LoadedModel) -> ConvertedModel:
  return ConvertedModel(opened.model, opened.params, opened)


def _run(folder: str, reading: LoadOptions) -> ConvertedModel:
  """A run of ours: stage one is an autoencoder, stage two a whole model."""
  run = Run.open(folder)
  task = run.experiment.task
  if isinstance(task, AutoencoderTask) and reading == LoadOptions():
    params = run.trained(MeshShape().build())
    logger.warning(
      "a first stage does not know what its latents are to be multiplied "
      f"by; {SCALING_FACTOR} is written, diffusers' own default"
    )
    return ConvertedModel(task.autoencoder, params)
  return _whole(open_model(folder, reading))


def _write(flags: argparse.Namespace, model: ConvertedModel) -> None:
  params = jax.tree.map(np.asarray, model.params)
  opened = model.opened
  if flags.single_file:
    if opened is not None and opened.tokenizer is not None:
      logger.warning("a single file holds no tokenizer")
    saving.save_single_file(
      model.module, params, flags.target, dtype=flags.dtype
    )
    return
  told = (
    {}
    if opened is None
    else {"tokenizer": opened.tokenizer, "side": opened.height}
  )
  saving.save_pretrained(
    model.module,
    params,
    flags.target,
    dtype=flags.dtype,
    max_bytes=int(flags.shard_gigabytes * 2**30),
    **told,
  )
