"""An experiment's data as batches."""

import os
from collections.abc import Iterator

import jax
import numpy as np

from ldm_jax.config import Experiment
from ldm_jax.data import pipeline
from ldm_jax.data.augment import Augment
from ldm_jax.data.sound import Ledger, Sound
from ldm_jax.data.tokens import Words
from ldm_jax.runtime.sharding import Sharding


def held_out(
  experiment: Experiment, words: Words | None
) -> dict[str, np.ndarray]:
  """The examples that are measured."""
  data = experiment.data
  count = min(data.held_out, len(data.validation))
  return pipeline.first(
    Sound(data.validation, ledger(experiment)),
    count,
    augment=data.centred,
    tokenizer=words,
    views=data.views,
  )


def ledger(experiment: Experiment, folder: str | None = None) -> Ledger:
  """For this process's bad pictures; written down if there is a run folder."""
  mine = jax.process_index()
  name = f"bad_samples_{mine}.jsonl" if mine else "bad_samples.jsonl"
  path = folder and os.path.join(folder, name)
  return Ledger(path, experiment.data.max_bad_fraction)


def learned(
  experiment: Experiment, bad: Ledger
) -> tuple[pipeline.Source, Augment | None]:
  """What is learned from, stand-ins for bad pictures, and how it is cut."""
  source, augment = experiment.data.learned
  return source if experiment.data.latents else Sound(source, bad), augment


def one_of(
  experiment: Experiment, words: Words | None, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """A batch of one training example, cut to a bucket's shape."""
  data = experiment.data
  source, augment = learned(experiment, ledger(experiment))
  stream = pipeline.batches(
    source,
    batch=1,
    seed=experiment.seed,
    augment=augment,
    tokenizer=words,
    views=data.views,
    threads=1,
    buckets=(shape,),
  )
  return next(stream)


def batches(
  experiment: Experiment,
  words: Words | None,
  start: int,
  sharding: Sharding,
  bad: Ledger,
) -> Iterator[dict[str, np.ndarray]]:
  """This process's part of every batch from step `start` on."""
  data = experiment.data
  source, augment = learned(experiment, bad)
  return pipeline.batches(
    source,
    batch=data.batch,
    seed=experiment.seed,
    augment=augment,
    tokenizer=words,
    views=data.views,
    start=start,
    rows=sharding.rows(data.batch),
    threads=data.threads,
    buckets=data.buckets,
  )


def numbers(experiment: Experiment, step: int) -> list[int]:
  """The examples that a step, counted from 1, learns from."""
  data = experiment.data
  source, _ = data.learned
  return pipeline.numbers(
    source,
    batch=data.batch,
    seed=experiment.seed,
    number=step - 1,
    buckets=data.buckets,
  )
