"""Checks that data, tokenizer and network fit together."""

import json
import re
from typing import Any

import jax
import numpy as np

from ldm_jax import config_json, config_upgrade
from ldm_jax.config import Experiment
from ldm_jax.data.label_checks import label_problem
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.text.stored_tokenizers import T5_TOKENS
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.errors import ConfigError
from ldm_jax.fields.stack_names import STACK
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.run import frozen_shapes, is_autoencoder, shapes_of
from ldm_jax.runtime.devices import memory
from ldm_jax.runtime.devices.sharding import AXES, Sharding
from ldm_jax.runtime.devices.sharding_rules import MATRICES
from ldm_jax.runtime.program_cache import (
  Structure,
  initialization,
  shared_by_value,
)
from ldm_jax.training.dataloading import (
  classes_of,
  example_batch,
  held_out_rows,
)

# What is to be done where a batch lacks the ids of a text conditioner.
_TOKENIZERS = {
  "tokens": "; set data.tokenizer",
  T5_TOKENS: "; set data.t5_tokenizer",
}


def conditioners_of(task: Any) -> tuple[Any, ...]:
  """The conditioners of a task's model; none without a model."""
  return getattr(getattr(task, "model", None), "conditioners", ())


def check_conditions(
  experiment: Experiment,
  tokenizer: Tokenizer | None,
  example: dict[str, np.ndarray],
) -> None:
  """Raises ConfigError if data, tokenizer and network do not fit together."""
  task = experiment.task
  conditioners = conditioners_of(task)
  for part in conditioners:
    if part.input_key not in example:
      raise ConfigError(
        f"a conditioner reads {part.input_key!r}, but the examples have "
        f"{', '.join(sorted(example))}" + _TOKENIZERS.get(part.input_key, "")
      )
  # Of the rows that the trainer initialises with, so that it traces no more.
  rows = held_out_rows(experiment)
  _check_shapes(task, Structure.of(shapes_of(example, rows)))
  for part in conditioners:
    if isinstance(part, TextEmbedder | ClipEmbedder | T5Embedder):
      _check_text(part, tokenizer and tokenizer.of(part.input_key))
  for name, count in classes_of(experiment).items():
    if name in example and (
      problem := label_problem(name, example[name], count)
    ):
      raise ConfigError(problem)


def check_buckets(experiment: Experiment, tokenizer: Tokenizer | None) -> None:
  """Raises ConfigError unless the network takes every bucket's shape."""
  data = experiment.data
  if data.buckets and data.latents:
    raise ConfigError(
      "cached latents are of one shape; leave data.latents or data.buckets out"
    )
  for shape in data.buckets:
    try:
      example = example_batch(experiment, tokenizer, shape)
      check_conditions(experiment, tokenizer, example)
    except (ConfigError, ValueError) as error:
      raise ConfigError(f"data.buckets {shape}: {error}") from error


def check_latents(experiment: Experiment) -> None:
  """Raises ConfigError if cached latents are not this experiment's."""
  data = experiment.data
  if not data.latents:
    return
  is_second = hasattr(experiment.task, "with_first_stage")
  if not is_second or is_autoencoder(experiment.task):
    raise ConfigError("data.latents are of stage two; stage one needs images")
  manifest = config_upgrade.renamed(CachedLatents(data.latents).manifest)
  wanted = {
    "first_stage": experiment.first_stage_digest,
    "source": config_json.to_json(data.source),
    "augment": config_json.to_json(data.augment),
  }
  for name, value in wanted.items():
    if manifest.get(name) != json.loads(json.dumps(value)):
      raise ConfigError(
        f"the latents in {data.latents!r} were made with another {name}; make "
        "them again: ldm-jax prepare"
      )
  needs = [
    transform.output_key
    for transform in data.transforms
    if not isinstance(transform, LayoutTokens)
  ]
  needs += [
    part.input_key
    for part in conditioners_of(experiment.task)
    if isinstance(part, ConcatConditioner)
  ]
  if needs:
    raise ConfigError(
      f"{needs[0]!r} is made of images, and cached latents have none; leave "
      "data.latents out"
    )


def check_mesh(task: Any, batch: Any, sharding: Sharding) -> None:
  """Raises ConfigError for a mesh on which gradients would be wrong.

  XLA's partitioner scales those of convolution kernels wrongly where height is
  sharded and another axis shards kernels. Transformers have no such kernels.

  Args:
    batch: shapes of the arrays.
  """
  _, fsdp, tensor, context = (sharding.mesh.shape[axis] for axis in AXES)
  if context == 1 or max(fsdp, tensor) == 1:
    return
  frozen = task.frozen_shapes(batch)
  state = jax.eval_shape(task.init, jax.random.key(0), batch, frozen)
  trained = state, getattr(frozen, "base", None)
  for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # The first axis of stacked blocks is none of a kernel's.
    axes = len(leaf.shape) - bool(STACK.search(name))
    is_matrix = axes < 3 or re.search(MATRICES, name)
    if name.endswith("kernel") and not is_matrix:
      raise ConfigError(
        f"mesh fsdp={fsdp}, tensor={tensor} and context={context} exclude each "
        f"other where convolutions are trained ({name}): gradients would be "
        "wrong; set context to 1, or both others"
      )


def check_memory(example: dict[str, np.ndarray], batch: int) -> None:
  """Raises TooLarge if a batch of such examples is too large."""
  size = batch * sum(array.nbytes for array in example.values())
  per_device = -(-size // jax.device_count())
  memory.check_fits(f"a batch of {batch}", per_device, "a smaller data.batch")


@shared_by_value
def _check_shapes(task: Any, batch: Structure) -> None:
  """Raises ConfigError unless the network takes such batches."""
  frozen = frozen_shapes(task, batch)
  try:
    initialization(task, batch, Structure.of(frozen))
  except TypeError as error:  # jax's, where shapes do not match
    first, *_ = str(error).splitlines()
    raise ConfigError(
      f"the conditioners' outputs do not fit the latents: {first}; "
      "look at their sizes (halvings, cell, size) and widths"
    ) from error


def _check_text(
  part: TextEmbedder | ClipEmbedder | T5Embedder, tokenizer: Tokenizer
) -> None:
  is_clip = isinstance(part, ClipEmbedder)
  encoder = part.encoders[0] if is_clip else part.encoder
  if tokenizer.size > encoder.vocabulary:
    raise ConfigError(
      f"the tokenizer has {tokenizer.size} ids, the text encoder "
      f"vocabulary={encoder.vocabulary}; raise it"
    )
  length = tokenizer.length
  empty = part.empty_prompt_ids(length)
  null = np.asarray(empty[0] if is_clip else empty)
  if not np.array_equal(null, tokenizer.empty):
    raise ConfigError(
      f"the tokenizer writes the empty prompt as {tokenizer.empty.tolist()}, "
      f"the conditioner as {null.tolist()}; set the ids it begins, ends and is "
      "padded with"
    )
