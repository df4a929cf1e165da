"""Before the first step: all that a run needs is found, checked and kept."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax.commands import starting
from ldm_jax.commands.checking import (
  check_buckets,
  check_conditions,
  check_latents,
  check_memory,
)
from ldm_jax.commands.feeding import batches, held_out, learned, ledger
from ldm_jax.commands.models import open_model
from ldm_jax.config import Experiment
from ldm_jax.data import pipeline
from ldm_jax.data.sound import Sound
from ldm_jax.data.tokens import Words
from ldm_jax.nn.autoencoder import Pixels
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened
from ldm_jax.pretrained import towers
from ldm_jax.pretrained.perceptual import perceptual
from ldm_jax.programs import INIT
from ldm_jax.run import Run, open_first_stage, shapes_of
from ldm_jax.runtime import processes
from ldm_jax.runtime.digests import digest
from ldm_jax.runtime.sharding import Sharding
from ldm_jax.runtime.speech import say
from ldm_jax.tasks import autoencoding, denoising
from ldm_jax.tasks.autoencoding import Autoencoding
from ldm_jax.tasks.denoising import Denoising
from ldm_jax.tasks.latents import measured_scale

SCALE_BATCHES = 8  # on which the scale of latents is measured


class Ready(NamedTuple):
  """A run that can go on, or begin.

  Attributes:
    frozen: what is not trained, on the devices.
    start: parameters to begin from instead of fresh ones, or None.
  """

  run: Run
  words: Words | None
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


def ready(experiment: Experiment, folder: str, sharding: Sharding) -> Ready:
  """Opens the run of `folder`, or begins it: nothing is written before all
  that can be refused has been looked at.

  Raises:
    ValueError: something cannot be; see `usage`.
  """
  if processes.agreed(Run.exists(folder)):
    return _again(experiment, Run.open(folder), sharding)
  start = stage_one = None
  if experiment.start:
    if not isinstance(experiment.task, Denoising):
      raise ConfigError("config.start is of stage two; leave it out")
    start = open_model(experiment.start)
  elif getattr(experiment.task, "lora", None):
    raise ConfigError(
      "a LoRA changes a model that is there: --config.start=runs/NAME"
    )
  if not isinstance(experiment.task, Autoencoding):
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
  processes.meet("the run is begun")
  return Ready(run, words, frozen, params)


def _again(experiment: Experiment, begun: Run, sharding: Sharding) -> Ready:
  """A run that was begun before."""
  if not isinstance(experiment.task, Autoencoding):
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
  return Ready(run, words, frozen, params)


def _first_stage(
  experiment: Experiment, start: Opened | None, sharding: Sharding
) -> _StageOne:
  """The run that is named, or the model that training begins from."""
  if experiment.first_stage:
    run = open_first_stage(experiment.first_stage)
    params, stage = run.trained(sharding), run.experiment.task.autoencoder
    scale = None
  elif start is not None:
    stage, params = start.model.first_stage, start.params.first_stage
    params = jax.device_put(params, sharding.state(params))
    scale = float(start.params.latent_scale)
  elif isinstance(experiment.task.first_stage, Pixels):
    stage, params, scale = experiment.task.first_stage, {}, None
  else:
    raise ConfigError(
      "stage two needs the run of a first stage: --config.first_stage=runs/NAME"
    )
  filled = dataclasses.replace(
    experiment,
    task=experiment.task.with_first_stage(stage),
    first_stage_digest=digest(params),
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
  experiment: Experiment, words: Words | None
) -> dict[str, np.ndarray]:
  """A batch of one, as training will see it."""
  data = experiment.data
  source, augment = learned(experiment, ledger(experiment))
  return pipeline.first(
    source, 1, augment=augment, tokenizer=words, views=data.views
  )


def _tokenizer(experiment: Experiment, start: Opened | None) -> Words | None:
  """The tokenizer of the captions: the start's, or a new one."""
  spec, source = experiment.data.tokenizer, experiment.data.source
  if spec is None:
    return None
  sound = Sound(source, ledger(experiment))
  if "caption" not in sound[0]:
    raise ConfigError(
      f"data.tokenizer is set, but {type(source).__name__} has no captions; "
      "write --config.data.tokenizer=none, or give it captions"
    )
  if start is not None and (words := starting.words_of(start)) is not None:
    return dataclasses.replace(words, length=spec.length)
  few = range(min(len(source), 5000))  # enough to meet every common word
  return spec.build(sound[i]["caption"] for i in few)


def _frozen(
  experiment: Experiment,
  stage_one: _StageOne | None,
  start: Opened | None,
  words: Words | None,
  sharding: Sharding,
) -> Any:
  """What is not trained, on the devices."""
  task = experiment.task
  if stage_one is None:
    if task.perceptual is None:
      return autoencoding.Frozen(None)
    lpips = perceptual(task.perceptual, experiment.perceptual)
    return jax.device_put(
      autoencoding.Frozen(lpips), sharding.state(autoencoding.Frozen(lpips))
    )
  scale = task.latent_scale or stage_one.scale
  if scale is None:
    stream = itertools.islice(
      batches(experiment, words, 0, sharding, ledger(experiment)),
      SCALE_BATCHES,
    )
    scale = measured_scale(
      task.first_stage,
      stage_one.params,
      map(sharding.put, stream),
      jax.random.key(experiment.seed),
      task.latents,
    )
    say(f"latents are multiplied by {scale:.5f}, their measured 1 / std")
  scale = jax.device_put(np.float32(scale), sharding.replicated)
  parts = {}
  if isinstance(task, Denoising) and (
    start is None or experiment.text_encoders
  ):
    parts = towers.frozen_parts(task.model, experiment.text_encoders)
  elif start is not None:
    known = start.params.conditioners
    parts = {n: known[n] for n in task.model.frozen if n in known}
  parts = jax.device_put(parts, sharding.state(parts))
  return denoising.Frozen(stage_one.params, scale, parts)


def _begun(
  experiment: Experiment,
  start: Opened,
  words: Words | None,
  frozen: Any,
  sharding: Sharding,
) -> tuple[Any, Any]:
  """What is frozen and what training begins from; under a LoRA the start is
  all frozen."""
  task, key = experiment.task, jax.random.key(experiment.seed)
  example = _example(experiment, words)
  fresh = jax.jit(task.fresh)(jax.random.fold_in(key, INIT), example, frozen)
  params = starting.begun(task, fresh, start)
  for name in task.model.frozen:
    del params["conditioners"][name]
  params = jax.device_put(params, sharding.state(params))
  if task.lora is None:
    return frozen, params
  return frozen.replace(base=params), None
