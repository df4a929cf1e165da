"""Behind train.py: an experiment and a folder become a loop that runs."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax import config
from ldm_jax.commands.doors import DATA, NUMERICS, Stop, usage
from ldm_jax.config import Experiment
from ldm_jax.data import pipeline
from ldm_jax.data.images import ImageError
from ldm_jax.data.tokens import Words
from ldm_jax.loop import Loop, NonFinite, say
from ldm_jax.nn.conditioner import ClassEmbedder, TextEmbedder
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nodes import ConfigError, override
from ldm_jax.pretrained import towers
from ldm_jax.pretrained.perceptual import perceptual
from ldm_jax.run import Run, open_first_stage, shapes_of
from ldm_jax.runtime import metrics
from ldm_jax.runtime.checkpoint import digest
from ldm_jax.runtime.sharding import Sharding
from ldm_jax.tasks import autoencoding, denoising
from ldm_jax.tasks.denoising import Denoising

SCALE_BATCHES = 8  # on which the scale of latents is measured


def train(path: str, folder: str, overrides: Mapping[str, str]) -> int:
  """Trains the experiment of the config file; returns the exit code."""
  with usage():
    experiment = override(config.load(path), overrides)
    sharding = experiment.mesh.build()
    sharding.check_batch(experiment.data.batch, slices(experiment))
    experiment, run, words, frozen = _ready(experiment, folder, sharding)
  try:
    code = _loop(run, experiment, words, sharding, frozen)
  except NonFinite as error:
    raise Stop(str(error), NUMERICS) from error
  except ImageError as error:
    raise Stop(str(error), DATA) from error
  if jax.process_index() == 0:
    told: dict[str, Any] = {}
    for line in metrics.read(folder):
      told |= line
    print(json.dumps({"workdir": folder} | told))
  return code


def slices(experiment: Experiment) -> int:
  """Into how many parts a batch is cut before an update."""
  return getattr(experiment.task, "accumulate", 1)


def _ready(
  experiment: Experiment, folder: str, sharding: Sharding
) -> tuple[Experiment, Run, Words | None, Any]:
  """Opens the run of `folder`, or begins it: nothing is written before all
  that can be refused has been looked at."""
  begun = Run.open(folder) if Run.exists(folder) else None
  stage_one = None
  if isinstance(experiment.task, Denoising):
    if begun is not None and not experiment.first_stage:
      experiment = _with_first_stage(experiment, begun.experiment)
    else:
      stage_one = _first_stage(experiment, sharding)
      experiment = _with_first_stage(experiment, stage_one.filled)
  if begun is not None:
    begun.check_same(experiment)
    run = dataclasses.replace(begun, experiment=experiment)
    run.write()
    return experiment, run, run.tokenizer, run.frozen(sharding)
  words = _tokenizer(experiment)
  check_conditions(experiment, words, _held_out(experiment, words))
  data = experiment.data
  example = pipeline.first(
    data.source, 1, augment=data.augment, tokenizer=words
  )
  check_conditions(experiment, words, example)
  run = Run(folder, experiment, shapes_of(example, data.batch))
  frozen = _frozen(experiment, stage_one, words, sharding)
  if words is not None:
    run.save_tokenizer(words)
  run.save_frozen(frozen)
  run.write()
  return experiment, run, words, frozen


@dataclasses.dataclass(frozen=True)
class _StageOne:
  """An autoencoder to freeze, and the experiment's fields it fills in."""

  params: Any
  filled: Experiment


def _first_stage(experiment: Experiment, sharding: Sharding) -> _StageOne:
  if not experiment.first_stage:
    raise ConfigError(
      "stage two needs the run of a first stage: --config.first_stage=runs/NAME"
    )
  run = open_first_stage(experiment.first_stage)
  params = run.trained(sharding)
  model = dataclasses.replace(
    experiment.task.model, first_stage=run.experiment.task.autoencoder
  )
  task = dataclasses.replace(experiment.task, model=model)
  filled = dataclasses.replace(
    experiment, task=task, first_stage_digest=digest(params)
  )
  return _StageOne(params, filled)


def _with_first_stage(experiment: Experiment, filled: Experiment) -> Experiment:
  """`experiment` with the first stage's architecture and digest copied in."""
  model = dataclasses.replace(
    experiment.task.model, first_stage=filled.task.model.first_stage
  )
  return dataclasses.replace(
    experiment,
    task=dataclasses.replace(experiment.task, model=model),
    first_stage=experiment.first_stage or filled.first_stage,
    first_stage_digest=filled.first_stage_digest,
  )


def _tokenizer(experiment: Experiment) -> Words | None:
  spec, source = experiment.data.tokenizer, experiment.data.source
  if spec is None:
    return None
  if "caption" not in source[0]:
    raise ConfigError(
      f"data.tokenizer is set, but {type(source).__name__} has no captions; "
      "write --config.data.tokenizer=none, or give it captions"
    )
  few = range(min(len(source), 5000))  # enough to meet every common word
  return spec.build(source[i]["caption"] for i in few)


def _held_out(
  experiment: Experiment, words: Words | None
) -> dict[str, np.ndarray]:
  data = experiment.data
  count = min(data.held_out, len(data.validation))
  return pipeline.first(
    data.validation, count, augment=data.centred, tokenizer=words
  )


def check_conditions(
  experiment: Experiment, words: Words | None, example: dict[str, np.ndarray]
) -> None:
  """Raises ConfigError if data, tokenizer and network do not fit together."""
  experiment.task.frozen_shapes(shapes_of(example, 1))  # refuses wrong sizes
  if not isinstance(experiment.task, Denoising):
    return
  for part in experiment.task.model.conditioners:
    if part.reads not in example:
      raise ConfigError(
        f"a conditioner reads {part.reads!r}, but the examples have "
        f"{', '.join(sorted(example))}"
        + ("; set data.tokenizer" if part.reads == "tokens" else "")
      )
    if isinstance(part, TextEmbedder | ClipEmbedder):
      _check_text(part, words)
    elif isinstance(part, ClassEmbedder):
      most = int(example[part.reads].max())
      if most >= part.classes:
        raise ConfigError(
          f"label {most} needs classes={most + 1} or more, the conditioner "
          f"has {part.classes}"
        )


def _check_text(part: TextEmbedder | ClipEmbedder, words: Words) -> None:
  is_clip = isinstance(part, ClipEmbedder)
  encoder = part.encoders[0] if is_clip else part.encoder
  if words.size > encoder.vocabulary:
    raise ConfigError(
      f"the tokenizer has {words.size} ids, the text encoder "
      f"vocabulary={encoder.vocabulary}; raise it"
    )
  length = words.length
  null = np.asarray(part.empty(length)[0] if is_clip else part.null(length))
  if not np.array_equal(null, words.empty):
    raise ConfigError(
      f"the tokenizer writes the empty prompt as {words.empty.tolist()}, the "
      f"conditioner as {null.tolist()}; set the ids it begins, ends and is "
      "padded with"
    )


def _frozen(
  experiment: Experiment,
  stage_one: _StageOne | None,
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
  scale = task.latent_scale
  if scale is None:
    stream = itertools.islice(batches(experiment, words, 0), SCALE_BATCHES)
    scale = denoising.measured_scale(
      task.model,
      stage_one.params,
      sharding.ahead(stream),
      jax.random.key(experiment.seed),
    )
    say(f"latents are multiplied by {scale:.5f}, their measured 1 / std")
  scale = jax.device_put(np.float32(scale), sharding.replicated)
  parts = towers.frozen_parts(task.model, experiment.text_encoders)
  parts = jax.device_put(parts, sharding.state(parts))
  return denoising.Frozen(stage_one.params, scale, parts)


def batches(
  experiment: Experiment, words: Words | None, start: int
) -> Iterator[dict[str, np.ndarray]]:
  """This process's part of every batch from step `start` on."""
  data = experiment.data
  return pipeline.batches(
    data.source,
    batch=data.batch,
    seed=experiment.seed,
    augment=data.augment,
    tokenizer=words,
    start=start,
    share=(jax.process_index(), jax.process_count()),
    threads=data.threads,
  )


def _loop(
  run: Run,
  experiment: Experiment,
  words: Words | None,
  sharding: Sharding,
  frozen: Any,
) -> int:
  reports, example = experiment.reports, _held_out(experiment, words)
  shown = {name: rows[: reports.previews] for name, rows in example.items()}
  captions = [words.decode(ids) for ids in shown["tokens"]] if words else ()
  loop = Loop(
    experiment.task,
    sharding,
    run.folder,
    experiment.steps,
    experiment.seed,
    experiment.checkpoints,
    reports.every,
    reports.previews_every,
    captions,
  )
  return loop.run(
    frozen,
    lambda start: batches(experiment, words, start),
    sharding.whole(example),
    sharding.whole(shown),
  )
