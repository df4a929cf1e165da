"""Batches of an experiment's data."""

import os
from collections.abc import Iterator

import jax
import numpy as np

from ldm_jax.config import Experiment
from ldm_jax.data import batching
from ldm_jax.data.bad_images import BadImageLog, SkipBadImages
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.runtime.devices.sharding import Sharding


def held_out(
  experiment: Experiment, tokenizer: Tokenizer | None
) -> dict[str, np.ndarray]:
  """The batch of validation examples that is measured."""
  data = experiment.data
  count = min(data.held_out, len(data.validation))
  return batching.first(
    SkipBadImages(data.validation, bad_image_log(experiment)),
    count,
    augment=data.centred,
    tokenizer=tokenizer,
    transforms=data.transforms,
  )


def bad_image_log(
  experiment: Experiment, folder: str | None = None
) -> BadImageLog:
  """This process's log of bad images; a file if there is a run folder."""
  mine = jax.process_index()
  name = f"bad_samples_{mine}.jsonl" if mine else "bad_samples.jsonl"
  path = folder and os.path.join(folder, name)
  return BadImageLog(path, experiment.data.max_bad_fraction)


def training_source(
  experiment: Experiment, bad: BadImageLog
) -> tuple[batching.Source, Augment | None]:
  """The training source, bad images replaced, and its crop."""
  source, augment = experiment.data.training
  if not experiment.data.latents:
    source = SkipBadImages(source, bad)
  return source, augment


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
  """This process's part of every batch from step `start` on."""
  data = experiment.data
  source, augment = training_source(experiment, bad)
  return batching.batches(
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
