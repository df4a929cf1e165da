"""What arrays an experiment will meet, told from its config alone."""

import dataclasses

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
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.run import Run, open_first_stage
from ldm_jax.training.autoencoder import AutoencoderTask

Shapes = dict[str, jax.ShapeDtypeStruct]


def shapes_of(experiment: Experiment, batch: int) -> Shapes:
  """Shapes of a training batch, from the config alone.

  Raises:
    ConfigError: it does not tell the size of an image.
  """
  augment = experiment.data.augment
  if augment is None:
    raise ConfigError(
      "the config has no data.augment, so it does not say how large images are"
    )
  side, task = augment.size, experiment.task
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((batch, *shape), dtype)
  found = {"image": array(jnp.uint8, side, side, 3)}
  model = getattr(task, "model", None)
  for part in model.conditioners if model else ():
    if isinstance(part, TextEmbedder | ClipEmbedder):
      tokenizer = experiment.data.tokenizer
      length = 77 if tokenizer is None else tokenizer.length
      found[part.input_key] = array(jnp.int32, length)
    elif isinstance(part, ClassEmbedder):
      found[part.input_key] = array(jnp.int32)
    elif isinstance(part, SizeEmbedder):
      count = 6 if part.ends_with == "target" else 5
      found[part.input_key] = array(jnp.float32, count)
    elif isinstance(part, LayoutEmbedder):
      found[part.input_key] = array(jnp.int32, part.encoder.length)
    elif isinstance(part, SegmentationEmbedder):
      found[part.input_key] = array(jnp.uint8, side, side)
    elif isinstance(part, MaskedImage):
      found[part.input_key] = array(jnp.bool_, side, side)
    elif isinstance(part, DepthMap):
      found[part.input_key] = array(jnp.float32, side, side)
    elif isinstance(part, LowResolution):
      small = side // model.first_stage.stride
      found[part.input_key] = array(jnp.uint8, small, small, 3)
    elif isinstance(part, NeighbourEmbeddings):
      found[part.input_key] = array(jnp.float32, 4, part.width)
  if hasattr(task, "input_key"):
    found[task.input_key] = array(jnp.int32)
  return found


def with_first_stage(experiment: Experiment, named: str | None) -> Experiment:
  """The experiment on the first stage that is named.

  Raises:
    ConfigError: none is named and one is needed, or the other way round, or it
      is none.
  """
  if isinstance(experiment.task, AutoencoderTask):
    if named:
      raise ConfigError("stage one has no --first_stage; leave it out")
    return experiment
  if not named:
    if isinstance(experiment.task.first_stage, PixelSpace):
      return experiment
    raise ConfigError(
      "stage two needs --first_stage: a config of stage one, such as "
      "configs/ldm/kl_f8.py, or a run of one"
    )
  if Run.exists(named):
    task = open_first_stage(named).experiment.task
  else:
    task = config.load(named).task
  if not isinstance(task, AutoencoderTask):
    raise ConfigError(f"--first_stage {named!r} is no config of stage one")
  second = experiment.task.with_first_stage(task.autoencoder)
  return dataclasses.replace(experiment, task=second)
