"""A request's maps and arrays, and the classifier that guides it."""

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ldm_jax.data import annotations
from ldm_jax.errors import ConfigError, DataError, config_errors
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.pretrained.hub.fetch import local_run
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling.inputs.files import json_file, plane_file, read_floats


def read_segmap(
  segmap: Any, height: int, width: int
) -> UInt8[np.ndarray, "h w"]:
  """The classes of an image's pixels, resized to the nearest.

  Raises:
    ConfigError: it is no image of one channel.
  """
  with config_errors(DataError):
    plane = annotations.read_map(plane_file(segmap, "segmap"))
  size = width, height
  return np.asarray(
    Image.fromarray(plane).resize(size, Image.Resampling.NEAREST)
  )


def read_depth(depth: Any, height: int, width: int) -> Float[np.ndarray, "h w"]:
  """The depth of an image's pixels, scaled to -1 to 1, and resized.

  Raises:
    ConfigError: it is no image of one channel.
  """
  with config_errors(DataError):
    plane = annotations.read_depth(plane_file(depth, "depth"))
  size = width, height
  return np.asarray(
    Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)
  )


def read_layout(layout: Any) -> Float[np.ndarray, "k 5"]:
  """Rows of left, top, right, bottom and a class.

  Raises:
    ConfigError: it is not a list of boxes.
  """
  with config_errors(DataError):
    return annotations.read_boxes(json_file(layout, "layout"))


def read_neighbours(neighbours: Any) -> Float[np.ndarray, "k d"]:
  """Rows of embeddings.

  Raises:
    ConfigError: it is not an array of finite numbers with two axes.
  """
  rows = read_floats(neighbours, "neighbours", 2, "(rows, width)")
  return rows.astype(np.float32)


def own_condition(loaded: Any, part: Any, inputs: Any) -> Any:
  """The input of a user-defined conditioner, and where it is unconditional.

  Args:
    loaded: not used.
    part: the conditioner.
    inputs: a `ConditionInputs`; its array is repeated for every image.

  Raises:
    ConfigError: the request has no such array.
  """
  name, count = part.input_key, inputs.count
  if name not in inputs.arrays:
    raise ConfigError(
      f"this model's {type(part).__name__} reads {name!r}; give "
      f"conditions={{{name!r}: array}} (--condition {name}=FILE.npy)"
    )
  row = inputs.arrays[name]
  rows = np.broadcast_to(row, (count, *row.shape))
  is_null = np.full(count, part.has_unconditional)
  return (rows, np.zeros(count, bool)), (rows, is_null)


def open_classifier(
  folder: str,
  latent_scale: float,
  sharding: Sharding,
  trust: Collection[str] = (),
) -> tuple[EncoderUNet, Any]:
  """The classifier of a run, with its averaged parameters.

  Args:
    trust: see `Run.open`.

  Raises:
    ConfigError: it is not a classifier's run, or was trained on latents of
      another scale.
  """
  run = Run.open(local_run(folder), trust)
  task = run.experiment.task
  # Any task with such a network is accepted; ldm_jax's own is ClassifierTask.
  classifier = getattr(task, "classifier", None)
  if not isinstance(classifier, EncoderUNet):
    raise ConfigError(
      f"{folder!r} is a run of {type(task).__name__}; expected one of "
      "ClassifierTask (--classifier)"
    )
  scale = float(run.frozen(sharding).latent_scale)
  if abs(scale / latent_scale - 1) > 0.01:
    raise ConfigError(
      f"the classifier {folder!r} was trained on latents multiplied by "
      f"{scale:.5f}, the model's are by {latent_scale:.5f}; train it with "
      f"--config.task.latent_scale={latent_scale:.5f}"
    )
  return classifier, run.trained(sharding)
