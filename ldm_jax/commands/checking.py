"""Whether data, tokenizer and network fit together, before anything begins."""

import json
from typing import Any

import jax
import numpy as np

from ldm_jax import nodes
from ldm_jax.commands.feeding import one_of
from ldm_jax.config import Experiment
from ldm_jax.data.latents import Latents
from ldm_jax.data.layout import LayoutTokens
from ldm_jax.data.tokens import Words
from ldm_jax.nn.conditioner import ClassEmbedder, TextEmbedder
from ldm_jax.nn.conditioners import Beside
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nn.spatial import MapEmbedder
from ldm_jax.nodes import ConfigError
from ldm_jax.run import shapes_of
from ldm_jax.runtime import memory
from ldm_jax.tasks.autoencoding import Autoencoding
from ldm_jax.tasks.classifying import Classifying
from ldm_jax.tasks.denoising import Denoising


def check_conditions(
  experiment: Experiment, words: Words | None, example: dict[str, np.ndarray]
) -> None:
  """Raises ConfigError if data, tokenizer and network do not fit together."""
  task = experiment.task
  parts = task.model.conditioners if isinstance(task, Denoising) else ()
  for part in parts:
    if part.reads not in example:
      raise ConfigError(
        f"a conditioner reads {part.reads!r}, but the examples have "
        f"{', '.join(sorted(example))}"
        + ("; set data.tokenizer" if part.reads == "tokens" else "")
      )
  _check_shapes(task, shapes_of(example, 1))
  for part in parts:
    if isinstance(part, TextEmbedder | ClipEmbedder):
      _check_text(part, words)
    elif isinstance(part, ClassEmbedder | MapEmbedder):
      _check_labels(example[part.reads], part.classes)
  if isinstance(task, Classifying):
    _check_labels(example[task.reads], task.classifier.classes)


def check_buckets(experiment: Experiment, words: Words | None) -> None:
  """Raises ConfigError unless the network takes every bucket's shape."""
  data = experiment.data
  if data.buckets and data.latents:
    raise ConfigError(
      "cached latents are of one shape; leave data.latents or data.buckets out"
    )
  for shape in data.buckets:
    try:
      example = one_of(experiment, words, shape)
      check_conditions(experiment, words, example)
    except (ConfigError, ValueError) as error:
      raise ConfigError(f"data.buckets {shape}: {error}") from error


def check_latents(experiment: Experiment) -> None:
  """Raises ConfigError if cached latents are not this experiment's."""
  data = experiment.data
  if not data.latents:
    return
  if isinstance(experiment.task, Autoencoding):
    raise ConfigError(
      "data.latents are of stage two; stage one learns from images"
    )
  told = Latents(data.latents).manifest
  wanted = {
    "first_stage": experiment.first_stage_digest,
    "source": nodes.to_json(data.source),
    "augment": nodes.to_json(data.augment),
  }
  for name, value in wanted.items():
    if told[name] != json.loads(json.dumps(value)):
      raise ConfigError(
        f"the latents in {data.latents!r} were made with another {name}; make "
        "them anew: python -m ldm_jax.commands.prepare"
      )
  task = experiment.task
  parts = task.model.conditioners if isinstance(task, Denoising) else ()
  needs = [v.adds for v in data.views if not isinstance(v, LayoutTokens)]
  needs += [part.reads for part in parts if isinstance(part, Beside)]
  if needs:
    raise ConfigError(
      f"{needs[0]!r} is made of images, which cached latents have none of; "
      "leave data.latents out"
    )


def check_memory(example: dict[str, np.ndarray], batch: int) -> None:
  """Raises TooLarge if a batch of such examples is."""
  size = batch * sum(array.nbytes for array in example.values())
  share = -(-size // jax.device_count())
  memory.check(f"a batch of {batch}", share, "a smaller data.batch")


def _check_shapes(task: Any, shapes: dict[str, jax.ShapeDtypeStruct]) -> None:
  """Raises ConfigError unless the network can be laid out for such batches."""
  frozen = task.frozen_shapes(shapes)
  try:
    jax.eval_shape(task.init, jax.random.key(0), shapes, frozen)
  except TypeError as error:  # of jax, where arrays do not lie side by side
    first, *_ = str(error).splitlines()
    raise ConfigError(
      f"what the conditioners say does not fit beside the latents: {first}; "
      "look at their sizes (halvings, cell, size) and widths"
    ) from error


def _check_labels(labels: np.ndarray, classes: int) -> None:
  most = int(labels.max())
  if most >= classes:
    raise ConfigError(
      f"label {most} needs classes={most + 1} or more, the network has "
      f"{classes}"
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
