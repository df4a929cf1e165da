"""Prepares a run before its first step: checks, frozen parameters, files."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ldm_jax import config
from ldm_jax.config import Experiment
from ldm_jax.data.text.stored_tokenizers import save_tokenizers
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.latents import check_encoder, known_latent_scale
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.pretrained.hub.fetch import local_run
from ldm_jax.pretrained.open_autoencoder import open_autoencoder
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.stacked_parameters import stack_parameters
from ldm_jax.run import Run, open_first_stage, shapes_of
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training import initialize_from
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.checks import (
  check_buckets,
  check_conditions,
  check_latents,
  check_memory,
  check_mesh,
)
from ldm_jax.training.compiled_steps import INIT
from ldm_jax.training.dataloading import (
  caption_tokenizer,
  example_of,
  held_out,
)
from ldm_jax.training.denoiser import DenoiserTask
from ldm_jax.training.distillation import DistillationTask
from ldm_jax.training.first_stage.start_autoencoder import (
  begin_from,
  with_autoencoder,
  with_start,
)
from ldm_jax.training.frozen import FirstStageParams, load_frozen
from ldm_jax.training.preparation.embedded_texts import check_texts
from ldm_jax.training.resume import (
  ResumeOptions,
  check_data,
  check_resumable,
  record_changes,
  with_batch,
  write_fingerprints,
)

logger = logging.getLogger(__name__)


class PreparedRun(NamedTuple):
  """A run that is ready to be trained or resumed.

  Attributes:
    frozen: parameters that are not trained, on the devices.
    start: parameters to begin from instead of initialised ones, or None; the
      trainer donates them, so that no second set stays in memory.
  """

  run: Run
  tokenizer: Tokenizer | None
  frozen: Any
  start: Any = None


def prepare_run(
  experiment: Experiment,
  folder: str,
  sharding: Sharding,
  trust: Sequence[str] = (),
  options: ResumeOptions = ResumeOptions(),
) -> PreparedRun:
  """Opens the run in `folder`, or creates it.

  Nothing is written before everything has been checked.

  Raises:
    ConfigError, or a ValueError of a constructor: something does not fit.
  """
  config.check_readable(experiment)
  trust = (*trust, *config.packages(experiment))
  if processes.broadcast(Run.exists(folder)):
    return _reopened(experiment, folder, sharding, trust, options)
  start = first_stage = params = None
  if isinstance(experiment.task, AutoencoderTask):
    experiment, params = with_start(experiment, sharding, trust)
  elif experiment.start and not isinstance(experiment.task, DistillationTask):
    if not isinstance(experiment.task, DenoiserTask):
      raise ConfigError(
        f"{type(experiment.task).__name__} begins from no model; leave "
        "config.start out (--config.start)"
      )
    start = open_model(experiment.start, LoadOptions(trust=tuple(trust)))
  elif getattr(experiment.task, "lora", None):
    raise ConfigError(
      "a LoRA changes an existing model: --config.start=runs/NAME"
    )
  if has_first_stage(experiment.task):
    first_stage = _first_stage(experiment, start, sharding, trust)
    experiment = _with_first_stage(experiment, first_stage.filled)
  check_latents(experiment)
  check_texts(experiment)
  tokenizer = caption_tokenizer(experiment, start)
  example = example_of(experiment, tokenizer)
  check_conditions(experiment, tokenizer, example)
  check_conditions(experiment, tokenizer, held_out(experiment, tokenizer))
  check_buckets(experiment, tokenizer)
  check_memory(example, experiment.data.batch)
  run = Run(folder, experiment, shapes_of(example, experiment.data.batch))
  check_mesh(experiment.task, run.batch, sharding)
  frozen = load_frozen(experiment, first_stage, start, tokenizer, sharding)
  if start is not None:
    frozen, params = _started(experiment, start, tokenizer, frozen, sharding)
  _write(run, tokenizer, frozen)
  return PreparedRun(run, tokenizer, frozen, params)


def _write(run: Run, tokenizer: Tokenizer | None, frozen: Any) -> None:
  """Creates the run folder."""
  run.save_frozen(frozen)
  if processes.is_first():
    if tokenizer is not None:
      save_tokenizers(tokenizer, run.folder)
    write_fingerprints(run.folder, run.experiment)
    run.write()
  processes.barrier("run created")


def _reopened(
  experiment: Experiment,
  folder: str,
  sharding: Sharding,
  trust: Sequence[str],
  options: ResumeOptions,
) -> PreparedRun:
  """A run that exists."""
  stored = Run.open(folder, trust)
  experiment = with_autoencoder(experiment, stored)
  if has_first_stage(experiment.task):
    filled = stored.experiment
    if experiment.first_stage:
      filled = _first_stage(experiment, None, sharding, trust).filled
    experiment = _with_first_stage(experiment, filled)
  changed = check_resumable(stored, experiment, options)
  changed += check_data(stored, experiment, options)
  before, now = stored.experiment.data.batch, experiment.data.batch
  batch = with_batch(stored.batch, before, now)
  run = dataclasses.replace(stored, experiment=experiment, batch=batch)
  check_mesh(experiment.task, run.batch, sharding)
  if processes.is_first():
    record_changes(run, changed)
    write_fingerprints(folder, experiment)
    run.write()
  tokenizer, frozen, params = run.tokenizer, run.frozen(sharding), None
  start = experiment.start or stored.experiment.start
  is_first = isinstance(experiment.task, AutoencoderTask)
  if start and not run.has_step and is_first:
    begun = dataclasses.replace(experiment, start=start)
    _, params = begin_from(begun, sharding, trust)
  elif start and not run.has_step and _begins_from_params(experiment.task):
    # Stopped before its first checkpoint, so the parameters to begin from are
    # in no file of this run.
    start = open_model(start, LoadOptions(trust=tuple(trust)))
    _, params = _started(experiment, start, tokenizer, frozen, sharding)
  return PreparedRun(run, tokenizer, frozen, params)


def _begins_from_params(task: Any) -> bool:
  """Whether the parameters to begin from are trained, not frozen."""
  return isinstance(task, DenoiserTask) and task.lora is None


def _first_stage(
  experiment: Experiment,
  start: LoadedModel | None,
  sharding: Sharding,
  trust: Sequence[str],
) -> FirstStageParams:
  """The first stage of the run `first_stage`, or of the model `start`."""
  if experiment.first_stage:
    run = open_first_stage(local_run(experiment.first_stage), trust)
    params, stage = run.trained(sharding), run.experiment.task.autoencoder
    check_encoder(run.experiment.task)
    scale = known_latent_scale(run.experiment.task)
  elif experiment.start and isinstance(experiment.task, DistillationTask):
    stage, params, scale = open_autoencoder(experiment.start, trust)
    params = jax.device_put(params, sharding.tree_shardings(params))
  elif start is not None:
    stage, params = start.model.first_stage, start.params.first_stage
    params = jax.device_put(params, sharding.tree_shardings(params))
    scale = float(start.params.latent_scale)
  elif isinstance(experiment.task.first_stage, PixelSpace):
    stage, params, scale = experiment.task.first_stage, {}, None
  elif isinstance(experiment.task, DistillationTask):
    raise ConfigError(
      "distillation needs a trained model whose autoencoder is imitated; give "
      "a run, a folder or a file (--config.start)"
    )
  else:
    raise ConfigError(
      "stage two needs the run of a first stage: --config.first_stage=runs/NAME"
    )
  filled = dataclasses.replace(
    experiment,
    task=experiment.task.with_first_stage(stage),
    first_stage_digest=checksum(params),
  )
  return FirstStageParams(params, filled, scale)


def has_first_stage(task: Any) -> bool:
  """Whether a task trains on the latents of a frozen first stage."""
  return hasattr(task, "with_first_stage")


def _with_first_stage(experiment: Experiment, filled: Experiment) -> Experiment:
  """`experiment` with the first stage's architecture and digest copied in."""
  return dataclasses.replace(
    experiment,
    task=experiment.task.with_first_stage(filled.task.first_stage),
    first_stage=experiment.first_stage or filled.first_stage,
    first_stage_digest=filled.first_stage_digest,
  )


def _started(
  experiment: Experiment,
  start: LoadedModel,
  tokenizer: Tokenizer | None,
  frozen: Any,
  sharding: Sharding,
) -> tuple[Any, Any]:
  """Frozen parameters and those to begin from.

  With a LoRA all parameters of the start are frozen, and the second is None.
  """
  task, key = experiment.task, jax.random.key(experiment.seed)
  example = example_of(experiment, tokenizer)
  initial = initialize_from.initialised_where_absent(
    task, start, jax.random.fold_in(key, INIT), example, frozen
  )
  params = initialize_from.initial_params(task, initial, start)
  for name in task.model.frozen_conditioners:
    del params["conditioners"][name]
  if task.lora is None:
    params = stack_parameters(task.model, params)
  params = jax.device_put(params, sharding.tree_shardings(params))
  if task.lora is None:
    return frozen, params
  return frozen.replace(base=params), None
