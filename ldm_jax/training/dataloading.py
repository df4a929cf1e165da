"""An experiment's data as batches."""

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
  experiment: Experiment, words: Tokenizer | None
) -> dict[str, np.ndarray]:
  """The examples that are measured."""
  data = experiment.data
  count = min(data.held_out, len(data.validation))
  return batching.first(
    SkipBadImages(data.validation, bad_image_log(experiment)),
    count,
    augment=data.centred,
    tokenizer=words,
    transforms=data.transforms,
  )


def bad_image_log(
  experiment: Experiment, folder: str | None = None
) -> BadImageLog:
  """For this process's bad pictures; written down if there is a run folder."""
  mine = jax.process_index()
  name = f"bad_samples_{mine}.jsonl" if mine else "bad_samples.jsonl"
  path = folder and os.path.join(folder, name)
  return BadImageLog(path, experiment.data.max_bad_fraction)


def training_source(
  experiment: Experiment, bad: BadImageLog
) -> tuple[batching.Source, Augment | None]:
  """What is learned from, stand-ins for bad pictures, and how it is cut."""
  source, augment = experiment.data.learned
  return source if experiment.data.latents else SkipBadImages(
    source, bad
  ), augment


def example_batch(
  experiment: Experiment, words: Tokenizer | None, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """A batch of one training example, cut to a bucket's shape."""
  data = experiment.data
  source, augment = training_source(experiment, bad_image_log(experiment))
  stream = batching.batches(
    source,
    batch=1,
    seed=experiment.seed,
    augment=augment,
    tokenizer=words,
    transforms=data.transforms,
    threads=1,
    buckets=(shape,),
  )
  return next(stream)


def batches(
  experiment: Experiment,
  words: Tokenizer | None,
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
    tokenizer=words,
    transforms=data.transforms,
    start=start,
    rows=sharding.local_rows(data.batch),
    threads=data.threads,
    buckets=data.buckets,
  )


def example_indices(experiment: Experiment, step: int) -> list[int]:
  """The examples that a step, counted from 1, learns from."""
  data = experiment.data
  source, _ = data.learned
  return batching.example_indices(
    source,
    batch=data.batch,
    seed=experiment.seed,
    number=step - 1,
    buckets=data.buckets,
  )
