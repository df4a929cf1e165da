"""Conditions from files: maps, layouts, neighbours; and what classifies."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ldm_jax.data import annotations
from ldm_jax.errors import ConfigError
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training.classifier import ClassifierTask


def read_segmap(path: str, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
  """The classes of a PNG's pixels, resized to the nearest.

  Raises:
    ValueError: it is no picture of one channel.
  """
  plane = Image.fromarray(annotations.read_map(path))
  return np.asarray(plane.resize((width, height), Image.Resampling.NEAREST))


def read_depth(path: str, height: int, width: int) -> Float[np.ndarray, "h w"]:
  """The depth of a PNG's pixels, -1 to 1, resized.

  Raises:
    ValueError: it is no picture of one channel.
  """
  plane = Image.fromarray(annotations.read_depth(path))
  return np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))


def read_neighbours(path: str) -> Float[np.ndarray, "k d"]:
  """Rows of embeddings.

  Raises:
    ConfigError: it is no array of finite numbers of two axes.
  """
  try:
    rows = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ConfigError(f"--neighbours {path!r}: {error}") from error
  is_numbers = isinstance(rows, np.ndarray) and rows.dtype.kind == "f"
  if not is_numbers or rows.ndim != 2 or not np.isfinite(rows).all():
    raise ConfigError(
      f"--neighbours {path!r} must hold finite floats of shape (rows, width)"
    )
  return rows.astype(np.float32)


def open_classifier(
  folder: str, latent_scale: float, sharding: Sharding
) -> tuple[EncoderUNet, Any]:
  """The classifier of a run, with its averaged parameters.

  Raises:
    ConfigError: it is none, or was trained on latents of another scale.
  """
  run = Run.open(folder)
  task = run.experiment.task
  if not isinstance(task, ClassifierTask):
    raise ConfigError(
      f"--classifier {folder!r} is a run of {type(task).__name__}; needed is "
      "one of ClassifierTask"
    )
  scale = float(run.frozen(sharding).latent_scale)
  if abs(scale / latent_scale - 1) > 0.01:
    raise ConfigError(
      f"--classifier {folder!r} knows latents multiplied by {scale:.5f}, the "
      f"model's are by {latent_scale:.5f}; train it with "
      f"--config.task.latent_scale={latent_scale:.5f}"
    )
  return task.classifier, run.trained(sharding)
