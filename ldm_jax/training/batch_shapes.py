"""The arrays of an experiment's batches, from its config alone."""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from ldm_jax import config
from ldm_jax.config import Experiment
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.hub.fetch import local_run
from ldm_jax.run import Run, is_autoencoder, open_first_stage

Shapes = dict[str, jax.ShapeDtypeStruct]


def shapes_of(experiment: Experiment, batch: int) -> Shapes:
  """Shapes of a training batch, from the config alone.

  Raises:
    ConfigError: it does not give the size of an image.
  """
  augment = experiment.data.augment
  if augment is None:
    raise ConfigError(
      "the config has no data.augment, so the size of its images is unknown"
    )
  side, task = augment.size, experiment.task
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((batch, *shape), dtype)
  shapes = {"image": array(jnp.uint8, side, side, 3)}
  model = getattr(task, "model", None)
  for part in model.conditioners if model else ():
    if isinstance(part, TextEmbedder | ClipEmbedder):
      tokenizer = experiment.data.tokenizer
      length = 77 if tokenizer is None else tokenizer.length
      shapes[part.input_key] = array(jnp.int32, length)
    elif isinstance(part, T5Embedder):
      shapes[part.input_key] = array(jnp.int32, part.length)
    elif isinstance(part, ClassEmbedder):
      shapes[part.input_key] = array(jnp.int32)
    elif isinstance(part, SizeEmbedder):
      count = 6 if part.ends_with == "target" else 5
      shapes[part.input_key] = array(jnp.float32, count)
    elif isinstance(part, LayoutEmbedder):
      shapes[part.input_key] = array(jnp.int32, part.encoder.length)
    elif isinstance(part, SegmentationEmbedder):
      shapes[part.input_key] = array(jnp.uint8, side, side)
    elif isinstance(part, MaskedImage):
      shapes[part.input_key] = array(jnp.bool_, side, side)
    elif isinstance(part, DepthMap):
      shapes[part.input_key] = array(jnp.float32, side, side)
    elif isinstance(part, LowResolution):
      small = side // model.first_stage.stride
      shapes[part.input_key] = array(jnp.uint8, small, small, 3)
    elif isinstance(part, SourceImage):
      shapes[part.input_key] = array(jnp.uint8, side, side, 3)
    elif isinstance(part, NeighbourEmbeddings):
      shapes[part.input_key] = array(jnp.float32, 4, part.width)
  if hasattr(task, "input_key"):
    shapes[task.input_key] = array(jnp.int32)
  return shapes


def with_first_stage(
  experiment: Experiment, named: str | None, trust: Collection[str] = ()
) -> Experiment:
  """The experiment with the architecture of a first stage filled in.

  Args:
    named: a config of stage one, or a run of one.
    trust: see `Run.open`.

  Raises:
    ConfigError: a first stage is missing, not needed, or not one.
  """
  if not hasattr(experiment.task, "with_first_stage"):
    if named:
      raise ConfigError("stage one has no first_stage; leave it out")
    return experiment
  if not named:
    if isinstance(experiment.task.first_stage, PixelSpace):
      return experiment
    raise ConfigError(
      "stage two needs first_stage (--first_stage): a config of stage one, "
      "such as ldm/kl_f8, or a run of one"
    )
  if Run.exists(named):
    task = open_first_stage(local_run(named), trust).experiment.task
  else:
    task = config.load(named).task
  if not is_autoencoder(task):
    raise ConfigError(f"first_stage {named!r} is not a config of stage one")
  second = experiment.task.with_first_stage(task.autoencoder)
  return dataclasses.replace(experiment, task=second)
