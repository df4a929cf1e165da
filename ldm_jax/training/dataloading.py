"""Batches of an experiment's data."""

import dataclasses
import os
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ldm_jax.config import Experiment
from ldm_jax.data import batching
from ldm_jax.data.bad_images import BadImageLog, SkipBadImages
from ldm_jax.data.label_checks import check_batch
from ldm_jax.data.text.stored_tokenizers import with_t5
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import SegmentationEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training import initialize_from
from ldm_jax.training.classifier import ClassifierTask


def held_out(
  experiment: Experiment, tokenizer: Tokenizer | None
) -> dict[str, np.ndarray]:
  """The batch of validation examples that is measured."""
  data, count = experiment.data, held_out_rows(experiment)
  return batching.first(
    SkipBadImages(
      data.validation, bad_image_log(experiment), classes_of(experiment)
    ),
    count,
    augment=data.centred,
    tokenizer=tokenizer,
    transforms=data.transforms,
  )


def held_out_rows(experiment: Experiment) -> int:
  """The number of validation examples that are measured."""
  data = experiment.data
  return min(data.held_out, len(data.validation))


def classes_of(experiment: Experiment) -> dict[str, int]:
  """{array: number of classes} of what the network reads as classes or ids."""
  task = experiment.task
  counts: dict[str, int] = {}
  for part in getattr(getattr(task, "model", None), "conditioners", ()):
    if isinstance(part, ClassEmbedder | SegmentationEmbedder):
      counts[part.input_key] = part.classes
    elif isinstance(part, TextEmbedder | T5Embedder | LayoutEmbedder):
      counts[part.input_key] = part.encoder.vocabulary
    elif isinstance(part, ClipEmbedder):
      sizes = [encoder.vocabulary for encoder in part.encoders]
      counts[part.input_key] = min(sizes)
  if isinstance(task, ClassifierTask):
    counts[task.input_key] = task.classifier.classes
  for transform in experiment.data.transforms:
    if isinstance(transform, LayoutTokens):
      counts["boxes"] = transform.vocabulary - 1  # the last id is padding
  return counts


def bad_image_log(
  experiment: Experiment, folder: str | None = None
) -> BadImageLog:
  """This process's log of bad images; a file if there is a run folder."""
  mine = jax.process_index()
  name = f"bad_samples_{mine}.jsonl" if mine else "bad_samples.jsonl"
  path = folder and os.path.join(folder, name)
  return BadImageLog(path, experiment.data.max_bad_fraction)


def training_source(
  experiment: Experiment,
  bad: BadImageLog,
  classes: Mapping[str, int] | None = None,
) -> tuple[batching.Source, Augment | None]:
  """The training source, bad examples replaced, and its crop.

  Args:
    classes: as of `SkipBadImages`.
  """
  source, augment = experiment.data.training
  if not experiment.data.latents:
    source = SkipBadImages(source, bad, classes or {})
  return source, augment


def caption_tokenizer(
  experiment: Experiment, start: LoadedModel | None
) -> Tokenizer | None:
  """The tokenizer of the captions: the start's, or a new one; and T5's.

  Raises:
    ConfigError: there are no captions, or no tokenizer can be built.
  """
  spec, source = experiment.data.tokenizer, experiment.data.source
  t5_spec = experiment.data.t5_tokenizer
  if t5_spec is not None and (spec is None or not t5_spec.path):
    raise ConfigError(
      "data.t5_tokenizer needs a path to a folder, and data.tokenizer too"
    )
  if spec is None:
    return None
  readable = SkipBadImages(source, bad_image_log(experiment))
  if "caption" not in readable[0]:
    raise ConfigError(
      f"data.tokenizer is set, but {type(source).__name__} has no captions; "
      "write --config.data.tokenizer=none, or give it captions"
    )
  if (
    start is not None
    and (tokenizer := initialize_from.tokenizer_of(start)) is not None
  ):
    found = dataclasses.replace(tokenizer, length=spec.length)
  else:
    few = range(min(len(source), 5000))  # enough for every common word
    found = spec.build(readable[i]["caption"] for i in few)
  return found if t5_spec is None else with_t5(found, t5_spec.build(()))


def example_of(
  experiment: Experiment, tokenizer: Tokenizer | None
) -> dict[str, np.ndarray]:
  """A training batch of one example."""
  data = experiment.data
  source, augment = training_source(experiment, bad_image_log(experiment))
  return batching.first(
    source, 1, augment=augment, tokenizer=tokenizer, transforms=data.transforms
  )


def example_batch(
  experiment: Experiment, tokenizer: Tokenizer | None, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """A batch of one training example, cropped to a bucket's shape."""
  data = experiment.data
  source, augment = training_source(experiment, bad_image_log(experiment))
  stream = batching.batches(
    source,
    batch=1,
    seed=experiment.seed,
    augment=augment,
    tokenizer=tokenizer,
    transforms=data.transforms,
    threads=1,
    buckets=(shape,),
  )
  return next(stream)


def batches(
  experiment: Experiment,
  tokenizer: Tokenizer | None,
  start: int,
  sharding: Sharding,
  bad: BadImageLog,
) -> Iterator[dict[str, np.ndarray]]:
  """This process's part of every batch from step `start` on.

  Raises:
    DataError: (while iterating) a batch has a label or id that the network has
      no row for.
  """
  data, classes = experiment.data, classes_of(experiment)
  source, augment = training_source(experiment, bad, classes)
  stream = batching.batches(
    source,
    batch=data.batch,
    seed=experiment.seed,
    augment=augment,
    tokenizer=tokenizer,
    transforms=data.transforms,
    start=start,
    rows=sharding.local_rows(data.batch),
    threads=data.threads,
    buckets=data.buckets,
  )
  return _checked(stream, classes)


def _checked(
  stream: Iterator[dict[str, np.ndarray]], classes: Mapping[str, int]
) -> Iterator[dict[str, np.ndarray]]:
  for batch in stream:
    check_batch(batch, classes)
    yield batch


def example_indices(experiment: Experiment, step: int) -> list[int]:
  """Indices of the examples of a step, counted from 1."""
  data = experiment.data
  source, _ = data.training
  return batching.example_indices(
    source,
    batch=data.batch,
    seed=experiment.seed,
    number=step - 1,
    buckets=data.buckets,
  )
