"""Before the first step: all that a run needs is found, checked and kept."""

import dataclasses
import itertools
import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax.config import Experiment
from ldm_jax.data import batching
from ldm_jax.data.bad_images import SkipBadImages
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.latents import measure_latent_scale
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.pretrained import text_encoders
from ldm_jax.pretrained.metric_networks.lpips import perceptual
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.run import Run, open_first_stage, shapes_of
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training import autoencoder, denoiser, initialize_from
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.checks import (
  check_buckets,
  check_conditions,
  check_latents,
  check_memory,
)
from ldm_jax.training.compiled_steps import INIT
from ldm_jax.training.dataloading import (
  bad_image_log,
  batches,
  held_out,
  training_source,
)
from ldm_jax.training.denoiser import DenoiserTask

logger = logging.getLogger(__name__)

SCALE_BATCHES = 8  # on which the scale of latents is measured


class PreparedRun(NamedTuple):
  """A run that can go on, or begin.

  Attributes:
    frozen: what is not trained, on the devices.
    start: parameters to begin from instead of fresh ones, or None.
  """

  run: Run
  words: Tokenizer | None
  frozen: Any
  start: Any = None


class _StageOne(NamedTuple):
  """An autoencoder to freeze, and the experiment's fields it fills in.

  Attributes:
    scale: of its latents, if whoever brings it knows.
  """

  params: Any
  filled: Experiment
  scale: float | None = None


def prepare_run(
  experiment: Experiment, folder: str, sharding: Sharding
) -> PreparedRun:
  """Opens the run of `folder`, or begins it: nothing is written before all
  that can be refused has been looked at.

  Raises:
    ValueError: something cannot be; see `usage`.
  """
  if processes.broadcast(Run.exists(folder)):
    return _again(experiment, Run.open(folder), sharding)
  start = stage_one = None
  if experiment.start:
    if not isinstance(experiment.task, DenoiserTask):
      raise ConfigError("config.start is of stage two; leave it out")
    start = open_model(experiment.start)
  elif getattr(experiment.task, "lora", None):
    raise ConfigError(
      "a LoRA changes a model that is there: --config.start=runs/NAME"
    )
  if not isinstance(experiment.task, AutoencoderTask):
    stage_one = _first_stage(experiment, start, sharding)
    experiment = _with_first_stage(experiment, stage_one.filled)
  check_latents(experiment)
  words = _tokenizer(experiment, start)
  check_conditions(experiment, words, held_out(experiment, words))
  example = _example(experiment, words)
  check_conditions(experiment, words, example)
  check_buckets(experiment, words)
  check_memory(example, experiment.data.batch)
  run = Run(folder, experiment, shapes_of(example, experiment.data.batch))
  frozen = _frozen(experiment, stage_one, start, words, sharding)
  params = None
  if start is not None:
    frozen, params = _begun(experiment, start, words, frozen, sharding)
  run.save_frozen(frozen)
  if processes.is_first():
    if words is not None:
      run.save_tokenizer(words)
    run.write()
  processes.barrier("the run is begun")
  return PreparedRun(run, words, frozen, params)


def _again(
  experiment: Experiment, begun: Run, sharding: Sharding
) -> PreparedRun:
  """A run that was begun before."""
  if not isinstance(experiment.task, AutoencoderTask):
    filled = begun.experiment
    if experiment.first_stage:
      filled = _first_stage(experiment, None, sharding).filled
    experiment = _with_first_stage(experiment, filled)
  begun.check_same(experiment)
  run = dataclasses.replace(begun, experiment=experiment)
  if processes.is_first():
    run.write()
  words, frozen, params = run.tokenizer, run.frozen(sharding), None
  start = experiment.start or begun.experiment.start
  if start and experiment.task.lora is None and not run.has_step:
    # Stopped before its first checkpoint: what it began from lies there alone.
    _, params = _begun(experiment, open_model(start), words, frozen, sharding)
  return PreparedRun(run, words, frozen, params)


def _first_stage(
  experiment: Experiment, start: LoadedModel | None, sharding: Sharding
) -> _StageOne:
  """The run that is named, or the model that training begins from."""
  if experiment.first_stage:
    run = open_first_stage(experiment.first_stage)
    params, stage = run.trained(sharding), run.experiment.task.autoencoder
    scale = None
  elif start is not None:
    stage, params = start.model.first_stage, start.params.first_stage
    params = jax.device_put(params, sharding.tree_shardings(params))
    scale = float(start.params.latent_scale)
  elif isinstance(experiment.task.first_stage, PixelSpace):
    stage, params, scale = experiment.task.first_stage, {}, None
  else:
    raise ConfigError(
      "stage two needs the run of a first stage: --config.first_stage=runs/NAME"
    )
  filled = dataclasses.replace(
    experiment,
    task=experiment.task.with_first_stage(stage),
    first_stage_digest=checksum(params),
  )
  return _StageOne(params, filled, scale)


def _with_first_stage(experiment: Experiment, filled: Experiment) -> Experiment:
  """`experiment` with the first stage's architecture and digest copied in."""
  return dataclasses.replace(
    experiment,
    task=experiment.task.with_first_stage(filled.task.first_stage),
    first_stage=experiment.first_stage or filled.first_stage,
    first_stage_digest=filled.first_stage_digest,
  )


def _example(
  experiment: Experiment, words: Tokenizer | None
) -> dict[str, np.ndarray]:
  """A batch of one, as training will see it."""
  data = experiment.data
  source, augment = training_source(experiment, bad_image_log(experiment))
  return batching.first(
    source, 1, augment=augment, tokenizer=words, transforms=data.transforms
  )


def _tokenizer(
  experiment: Experiment, start: LoadedModel | None
) -> Tokenizer | None:
  """The tokenizer of the captions: the start's, or a new one."""
  spec, source = experiment.data.tokenizer, experiment.data.source
  if spec is None:
    return None
  sound = SkipBadImages(source, bad_image_log(experiment))
  if "caption" not in sound[0]:
    raise ConfigError(
      f"data.tokenizer is set, but {type(source).__name__} has no captions; "
      "write --config.data.tokenizer=none, or give it captions"
    )
  if (
    start is not None
    and (words := initialize_from.tokenizer_of(start)) is not None
  ):
    return dataclasses.replace(words, length=spec.length)
  few = range(min(len(source), 5000))  # enough to meet every common word
  return spec.build(sound[i]["caption"] for i in few)


def _frozen(
  experiment: Experiment,
  stage_one: _StageOne | None,
  start: LoadedModel | None,
  words: Tokenizer | None,
  sharding: Sharding,
) -> Any:
  """What is not trained, on the devices."""
  task = experiment.task
  if stage_one is None:
    if task.perceptual is None:
      return autoencoder.Frozen(None)
    lpips = perceptual(task.perceptual, experiment.perceptual)
    return jax.device_put(
      autoencoder.Frozen(lpips),
      sharding.tree_shardings(autoencoder.Frozen(lpips)),
    )
  scale = task.latent_scale or stage_one.scale
  if scale is None:
    stream = itertools.islice(
      batches(experiment, words, 0, sharding, bad_image_log(experiment)),
      SCALE_BATCHES,
    )
    scale = measure_latent_scale(
      task.first_stage,
      stage_one.params,
      map(sharding.put_batch, stream),
      jax.random.key(experiment.seed),
      task.latents,
    )
    logger.info("latents are multiplied by %.5f, their measured 1 / std", scale)
  scale = jax.device_put(np.float32(scale), sharding.replicated)
  parts = {}
  if isinstance(task, DenoiserTask) and (
    start is None or experiment.text_encoders
  ):
    parts = text_encoders.load_text_encoders(
      task.model, experiment.text_encoders
    )
  elif start is not None:
    known = start.params.conditioners
    parts = {n: known[n] for n in task.model.frozen_conditioners if n in known}
  parts = jax.device_put(parts, sharding.tree_shardings(parts))
  return denoiser.Frozen(stage_one.params, scale, parts)


def _begun(
  experiment: Experiment,
  start: LoadedModel,
  words: Tokenizer | None,
  frozen: Any,
  sharding: Sharding,
) -> tuple[Any, Any]:
  """What is frozen and what training begins from; under a LoRA the start is
  all frozen."""
  task, key = experiment.task, jax.random.key(experiment.seed)
  example = _example(experiment, words)
  fresh = jax.jit(task.fresh)(jax.random.fold_in(key, INIT), example, frozen)
  params = initialize_from.initial_params(task, fresh, start)
  for name in task.model.frozen_conditioners:
    del params["conditioners"][name]
  params = jax.device_put(params, sharding.tree_shardings(params))
  if task.lora is None:
    return frozen, params
  return frozen.replace(base=params), None
